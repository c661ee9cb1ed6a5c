"""A rule that takes the paper's members, but in raster order, so that a channel means the same one in every group."""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("nearest")
class Nearest(Rule):
    """The k members nearest to the representative, itself first among equals, listed in raster order, last first.

    Members that were merged before each contribute one original token at a time, nearest member first.
    """

    by_nearness = True

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        used, slots = entries.sizes.clamp(1, k), torch.arange(k, device=entries.sizes.device)
        near = entries.listed(slots % used, entries.by_turns())
        # Original tokens are numbered in raster order: the numbers of those that count, the largest first.
        return near.masked_fill(slots >= used, -1).sort(descending=True).values.gather(2, slots % used)
