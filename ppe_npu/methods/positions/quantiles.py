"""A rule that keeps order statistics of the members' places on each axis.

A score is a sum over channels, each of which reads one axis, so it cannot depend on which row belongs to which column.
Hence the members may differ between axes. If they are sorted along each axis, a run of channels has the same meaning in
every group (the far end, the near end, a quarter of the way); in raster order, the columns of a group are not sorted.
"""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("quantiles")
class Quantiles(Rule):
    """On each axis by itself, the k quantiles of the members' places, from the largest to the smallest."""

    by_axis = True

    def along(self, entries: Entries, k: int, axis: int, axes: int) -> torch.Tensor:
        last = entries.sizes - 1
        if k == 1:
            return entries.listed(last // 2, entries.by_value(entries.coordinates(axis)))
        # Of s members the round(i * (s - 1) / (k - 1))-th, for i = k - 1 .. 0, in integers.
        place = (2 * torch.arange(k - 1, -1, -1, device=last.device) * last + k - 1) // (2 * (k - 1))
        return entries.listed(place, entries.by_value(entries.coordinates(axis)))
