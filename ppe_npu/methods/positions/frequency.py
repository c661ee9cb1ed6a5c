"""A rule by which fast channels keep one place, and slow channels the group's extent.

Within an axis channels go from fast to slow, so the first runs are the fast ones. Fast channels rotate members that are
a few cells apart by unrelated angles, while slow channels rotate them by similar ones. With one place in the fast
channels, a merged token, which the model was not trained on, stays close to a token that it was trained on.
"""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("frequency")
class Frequency(Rule):
    """The faster half of the runs reads the representative, the slower half is spread over the members, last first."""

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        slow = k // 2
        own = entries.of_representatives().expand(-1, -1, k - slow)
        if not slow:
            return own
        return torch.cat([own, entries.evenly(entries.sizes.clamp(1, slow), slow)], dim=-1)
