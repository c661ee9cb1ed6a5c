"""The fast channels keep one place, the slow ones the group's extent.

Within an axis channels go from fast to slow, so the first runs are the fast ones. There members a few cells apart are
rotated by angles that have nothing to do with each other; in the slow ones they differ little. So a token that a model
has never seen is close to one that it has.
"""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("frequency")
class Frequency(Rule):
    """The faster half of the runs reads the representative, the slower half is spread over the members, last first."""

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        labels, slow = entries.distinct(), k // 2
        own = entries.of_representatives().expand(-1, -1, k - slow)
        if not slow:
            return own
        return torch.cat([own, entries.evenly(labels, entries.sizes(labels).clamp(1, slow), slow)], dim=-1)
