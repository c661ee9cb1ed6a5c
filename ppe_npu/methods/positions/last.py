"""The rule of the released code: the last members."""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("last")
class Last(Rule):
    """The last k members, last first (the released code's rule)."""

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        # All entries of merged tokens count, repeated or not, so the last k entries are those of the last member.
        size = entries.sizes(entries.labels)
        pick = torch.arange(k, device=size.device)
        return entries.listed(entries.labels, size - 1 - pick % size.clamp_min(1), entries.by_token())
