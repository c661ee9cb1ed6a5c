"""VisionZip: keeps dominant tokens and merges the others (Yang et al., arXiv 2412.04467, section 3)."""

from dataclasses import dataclass

import torch

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import best, cosines, share_of, tower_windows
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("visionzip")
@dataclass(frozen=True)
class VisionZip(Method):
    """Keeps M tokens. M - C of them are dominant: those that receive the most attention in the tower; they stay as they
    are. Of the R others, in raster order, every s-th is a target, up to C of them, with s = max(1, R // C). Each of the
    rest joins the target whose key is most like its own (by cosine), and a group becomes its mean.

    With CLIP towers the attention is that of the class token; with other towers, and here, it is the attention that a
    token receives, the mean over queries. In the published code a group becomes its target plus the mean of the rest,
    which is about twice as long as a token; here it becomes its mean, as in later ports. One port replaces the queries
    by their mean from 6,144 patches on, which changes the score; here the score is the same for all sizes. If C is more
    than R / 2, all targets are at the top.

    Args:
        ratio: fraction of a frame's tokens to keep: round(n * ratio) of n.
        zip_ratio: the fraction of M that is contextual: C is round(M * zip_ratio), at least 1.
        contextual: C itself, in place of zip_ratio.
        dominant: with `contextual`, in place of ratio: M is the sum of both.
        tower_block: the block of the vision tower whose attention and keys are used; negative: counted from the end.
        tower_windows: what to do if that block attends in windows, see choosing.tower_windows.
        released: target plus mean, as in the published code.
    """

    ratio: float = share(1 / 9)
    zip_ratio: float = setting(10 / 64, above=0, most=1)
    contextual: int | None = setting(None, least=1)
    dominant: int | None = setting(None, least=0)
    tower_block: int = -1
    tower_windows: str = tower_windows()
    released: bool = False

    needs = frozenset({"tokens", "tower_keys", "tower_saliency"})

    def __post_init__(self):
        super().__post_init__()
        if self.dominant is not None and self.contextual is None:
            raise InputError(f"visionzip dominant={self.dominant}: give contextual, too")
        self.either("zip_ratio", "contextual")
        self.either("ratio", "dominant")

    def kept(self, tokens: int) -> int:
        if self.dominant is not None:
            return min(tokens, self.dominant + self.contextual)
        return max(round(tokens * self.ratio), 1)

    @torch.no_grad()
    def group(self, view: View) -> Grouping:
        view.require("visionzip", "tower_keys", "tower_saliency")
        if self.contextual is None:
            contextual = share_of(view.num_kept, self.zip_ratio, nearest=True).clamp_min(1)
        else:
            contextual = view.num_kept.clamp_max(self.contextual)
        dominant = _dominant(view, view.num_kept - contextual)
        target = _targets(view.present & ~dominant, contextual)
        kept = dominant | target
        slots = torch.where(kept, kept.long().cumsum(1) - 1, -1)
        labels = torch.where(view.present & ~kept, _likest(view.tower_keys, target, slots), slots)
        representatives = (~kept).long().sort(dim=1, stable=True).indices[:, : view.most]
        used = torch.arange(view.most, device=kept.device) < view.num_kept[:, None]
        grouping = Grouping.of(labels, torch.where(used, representatives, 0))
        return TargetPlusMean(**vars(grouping)) if self.released else grouping


@dataclass(frozen=True)
class TargetPlusMean(Grouping):
    """Groups that become their representative plus the mean of the rest."""

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        counts = self.counts[:, :, None].to(tokens.dtype)
        means, targets = super().apply(tokens), self.at_representatives(tokens)
        return torch.where(counts > 1, targets + (means * counts - targets) / (counts - 1).clamp_min(1), means)


def _dominant(view: View, count: torch.Tensor) -> torch.Tensor:
    """[F, N] bool, the `count` [F] tokens of each cell that receive the most attention."""
    order = best(view.tower_saliency, view, view.present.shape[1])
    first = torch.arange(order.shape[1], device=order.device) < count[:, None]
    return torch.zeros_like(first).scatter(1, order, first)


def _targets(others: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """[F, N] bool, the first `count` [F] of the tokens `others` [F, N] bool at a uniform stride."""
    step = torch.div(others.sum(1), count.clamp_min(1), rounding_mode="floor").clamp_min(1)[:, None]
    place = others.long().cumsum(1) - 1
    return others & (place % step == 0) & (place < step * count[:, None])


def _likest(keys: torch.Tensor, target: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[F, N] int64, the slot of the target whose key is most similar; ties go to the first. keys: [F, N, D]."""
    alike = cosines(keys).masked_fill_(~target[:, None], -torch.inf)
    return slots.gather(1, alike.argmax(-1))
