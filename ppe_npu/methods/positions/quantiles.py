"""Order statistics of each axis.

A score is a sum over channels, each of which reads one axis: which row goes with which column is nothing that it could
see. So the members need not be the same on all axes, and sorted along each one a run of channels always means the same:
the far end, the near end, a quarter of the way. In raster order the columns of a group come as they fall.
"""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("quantiles")
class Quantiles(Rule):
    """On each axis by itself, the k quantiles of the members' places, from the largest to the smallest."""

    by_axis = True

    def along(self, entries: Entries, k: int, axis: int, axes: int) -> torch.Tensor:
        labels = entries.distinct()
        last = entries.sizes(labels) - 1
        if k == 1:
            return entries.listed(labels, last // 2, entries.by_value(entries.coordinates(axis)))
        # The round(i * (s - 1) / (k - 1))-th of s, for i = k - 1 .. 0, in whole numbers.
        place = (2 * torch.arange(k - 1, -1, -1, device=labels.device) * last + k - 1) // (2 * (k - 1))
        return entries.listed(labels, place, entries.by_value(entries.coordinates(axis)))
