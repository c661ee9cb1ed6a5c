"""A rule that keeps points of the box around a group."""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries

_HIGH, _LOW, _CENTRE = 1, -1, 0
# Each run's side of the box as (row, column). Axes are counted from the last: odd ones use the first number (row), even
# ones the second (column).
_POINTS = {
    1: ((_CENTRE, _CENTRE),),
    2: ((_HIGH, _HIGH), (_LOW, _LOW)),
    3: ((_HIGH, _HIGH), (_LOW, _LOW), (_CENTRE, _CENTRE)),
    4: ((_HIGH, _HIGH), (_HIGH, _LOW), (_LOW, _HIGH), (_LOW, _LOW)),
    5: ((_HIGH, _HIGH), (_HIGH, _LOW), (_LOW, _HIGH), (_LOW, _LOW), (_CENTRE, _CENTRE)),
}


@register("extent")
class Extent(Rule):
    """The corners of the group's box and, from k = 5 on, its centre, repeated in turn; of k = 2 two opposite corners.

    On each axis, the centre is the member's place nearest to the middle of the box. The frame axis is treated like the
    column axis.
    """

    by_axis = True

    def along(self, entries: Entries, k: int, axis: int, axes: int) -> torch.Tensor:
        points = _POINTS[min(k, 5)]
        sides = [points[run % len(points)][1 if (axes - 1 - axis) % 2 == 0 else 0] for run in range(k)]
        at = entries.coordinates(axis)
        order, last = entries.by_value(at), entries.sizes - 1
        high, low = (entries.listed(place, order) for place in (last, torch.zeros_like(last)))
        assert entries.positions is not None, "entries in a pass have positions"
        where = entries.positions[axis]
        twice_middle = torch.cat([where[high] + where[low], torch.zeros_like(high[:, :1])], dim=1)[:, :, 0]
        off = (2 * at - twice_middle.gather(1, entries.labels)).abs()
        centre = entries.listed(torch.zeros_like(last), entries.by_value(off))
        return torch.cat([{_HIGH: high, _LOW: low, _CENTRE: centre}[side] for side in sides], dim=-1)
