"""A rule that spreads the positions evenly from the first member to the last."""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("spread")
class Spread(Rule):
    """k members evenly over the raster-sorted ones, last first."""

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        return entries.evenly(entries.sizes.clamp(1, k), k)
