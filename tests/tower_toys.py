"""Methods inside the vision tower for the tests, one of each kind: each is what a new method's file would contain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ppe_npu.methods.base import register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.leaving import Leaving
from ppe_npu.methods.tower_methods import JoiningMethod, RebuildingMethod
from ppe_npu.methods.view import View


@register("toy_tower_rebuilds")
@dataclass(frozen=True)
class Rebuilds(RebuildingMethod):
    """The patches of largest norm stay; each of the others changes as the two nearest of these do."""

    keep: float = share(0.5)
    prune_block: int = 2
    stabilized_blocks: int = 0
    pool: str = "prompt"
    neighbors: int = 2

    def stay(self, patches: int) -> int:
        return max(int(patches * self.keep), 1)

    def choose(self, before: torch.Tensor, now: torch.Tensor, pools: Sequence[int]) -> Leaving:
        return Leaving.of_scores(now.norm(dim=-1), now, pools, list(map(self.stay, pools)), self.neighbors)


@register("toy_tower_joins")
@dataclass(frozen=True)
class Joins(JoiningMethod):
    """The cells whose keys have the largest norm stay as they are; each of the others joins the one most like it."""

    ratio: float = share(0.5)
    merge_blocks: tuple[int, ...] = (1, -3)
    scope: str = "frame"

    def match(self, view: View) -> Grouping:
        norms = view.tokens.norm(dim=-1).masked_fill(~view.present, -1)
        kept = norms.sort(dim=1, descending=True, stable=True).indices[:, : view.most]
        return Grouping.of_kept(view, kept, "lend")
