"""A rule that keeps one member's place (V-CAST, Lin et al., arXiv 2603.27650: coordinates of no token are misaligned).

V-CAST prunes, so every token that it keeps has its original position, as with positions="keep_one". For a merged token,
the member in the middle of the group is the one nearest to all of its members.
"""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("on_grid")
class OnGrid(Rule):
    """One place, whatever k is: that of the member nearest to the mean of all members' places (city blocks)."""

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        assert entries.positions is not None, "entries in a pass have positions"
        labels, size = entries.labels, entries.sizes[:, :, 0]
        away = torch.zeros_like(labels)
        for axis in range(len(entries.positions)):
            at = entries.coordinates(axis)
            sums = at.new_zeros(len(at), entries.groups + 1).scatter_add_(1, labels, at)
            counts = torch.cat([size, torch.ones_like(size[:, :1])], dim=1)
            # Multiplied by the group's size, distances are integers, equal on every device.
            away += (at * counts.gather(1, labels) - sums.gather(1, labels)).abs()
        first = torch.zeros(k, dtype=torch.int64, device=labels.device).expand(*size.shape, k)
        return entries.listed(first, entries.by_value(away))
