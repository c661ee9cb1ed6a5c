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
        assert entries.distance is not None, "rules by nearness get distances"
        labels = entries.distinct()
        used = entries.sizes(labels).clamp(1, k)
        # The k nearest of each group are chosen, then listed in raster order.
        near = torch.where(entries.ranks(labels, entries.by_turns(entries.distance)) < k, labels, entries.groups)
        place = used - 1 - torch.arange(k, device=labels.device) % used
        return entries.listed(near, place, entries.by_raster())
