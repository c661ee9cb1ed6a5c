"""The paper's members, listed so that a channel always means the same one of them."""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("nearest")
class Nearest(Rule):
    """The k members nearest to the representative, itself first among equals, listed in raster order, last first.

    Of tokens that were merged before one of each member in turn.
    """

    by_nearness = True

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        assert entries.distance is not None, "the rules of nearness are given distances"
        labels = entries.distinct()
        used = entries.sizes(labels).clamp(1, k)
        # Only the k nearest of each group stay, and are listed in raster order.
        near = torch.where(entries.ranks(labels, entries.by_turns(entries.distance)) < k, labels, entries.groups)
        place = used - 1 - torch.arange(k, device=labels.device) % used
        return entries.listed(near, place, entries.by_raster())
