"""The rule of the released code: the last members."""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("last")
class Last(Rule):
    """The last k members, last first (the released code's rule)."""

    repeats = True  # so the last k entries of merged tokens are those of the last member

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        size, pick = entries.sizes, torch.arange(k, device=entries.sizes.device)
        return entries.listed(size - 1 - pick % size.clamp_min(1), entries.by_token())
