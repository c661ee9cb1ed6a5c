"""Methods for the tests: each is what the file of a new method would contain."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from ppe_npu.methods.base import NEEDS, Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View


@register("toy_largest")
@dataclass(frozen=True)
class Largest(Method):
    """Keeps the tokens of largest norm; the others lend their positions, lend their features, too, or are dropped."""

    ratio: float = share(0.5)
    dropped: str = "lend"

    def group(self, view: View) -> Grouping:
        norms = view.tokens.float().norm(dim=-1).masked_fill(~view.present, -1.0)
        kept = norms.sort(dim=1, descending=True, stable=True).indices[:, : view.most]
        return Grouping.of_kept(view, kept, self.dropped)


@register("toy_largest_of_video")
@dataclass(frozen=True)
class LargestOfVideo(Largest):
    """Does the same with all frames of a video competing."""

    scope = "span"


@register("toy_weighted")
@dataclass(frozen=True)
class Weighted(Largest):
    """Every token counts by its norm."""

    def group(self, view: View) -> Grouping:
        made = super().group(view)
        return Grouping.of(made.labels, made.representatives, view.tokens.float().norm(dim=-1))


@register("toy_corner")
@dataclass(frozen=True)
class Corner(Method):
    """Keeps the tokens nearest to the top left corner: looks at tokens and at places."""

    ratio: float = share(0.5)
    needs = frozenset({"tokens", "places"})

    def group(self, view: View) -> Grouping:
        away = view.places[..., 1] + view.places[..., 2]
        kept = away.masked_fill(~view.present, 10**6).sort(dim=1, stable=True).indices[:, : view.most]
        return Grouping.of_kept(view, kept, "merge")


@register("toy_pixels")
@dataclass(frozen=True)
class Pixels(Method):
    """Runs at the pixels only; every other cell of a picture leans on the one before it."""

    ratio: float = share(0.5)
    places = ("pixels",)

    def select(self, cells):
        here = torch.arange(cells[..., 0].numel()).view(cells.shape[:2])
        return here % 2 == 0, here - here % 2


@register("toy_late")
@dataclass(frozen=True)
class Late(Method):
    """Keeps the tokens of a frame whose norm is above the mean; the first of all where none is."""

    dropped: str = "lend"
    counts = "late"

    def kept(self, tokens: int) -> int:
        return tokens

    def group(self, view: View) -> Grouping:
        norms = view.tokens.float().norm(dim=-1)
        mean = torch.where(view.present, norms, 0).sum(1, keepdim=True) / view.present.sum(1, keepdim=True)
        kept = view.present & (norms > mean)
        kept[:, 0] |= ~kept.any(1)
        order = (~kept).long().sort(dim=1, stable=True).indices
        view = dataclasses.replace(view, num_kept=kept.sum(1), most=view.tokens.shape[1])
        return Grouping.of_kept(view, order, self.dropped)


@register("toy_late_of_video")
@dataclass(frozen=True)
class LateOfVideo(Late):
    """Does the same with all frames of a video competing."""

    scope = "span"


@register("toy_rows")
@dataclass(frozen=True)
class Rows(Largest):
    """Looks at a decoder layer's attention, and runs only at layers."""

    needs = frozenset({"layer_row"})
    places = ("layer",)


@register("toy_looker")
@dataclass(frozen=True)
class Looker(Method):
    """Records what it is shown (of the layer before, if asked), and keeps as many of the first tokens as it must."""

    ratio: float = share(1.0)
    looks: tuple[str, ...] = tuple(need for need in NEEDS if not need.startswith(("pixels", "tokens", "tower")))
    before: bool = False
    places = ("input", "layer")
    views: ClassVar[list[View]] = []

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tokens", *self.looks})

    @property
    def layer_before(self) -> bool:
        return self.before

    def group(self, view: View) -> Grouping:
        self.views.append(view)
        first = torch.arange(view.most, device=view.num_kept.device)
        return Grouping.of_kept(view, first.expand(len(view.num_kept), -1), "merge")


def view(tokens: torch.Tensor, num_kept) -> View:
    return View.of(tokens=tokens, num_kept=num_kept)
