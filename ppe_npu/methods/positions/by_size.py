"""A rule by which larger groups keep more positions."""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("by_size")
class BySize(Rule):
    """A group of s members keeps ceil(sqrt(s)) of them, at most k, spread over it and repeated in turn."""

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        sides = torch.arange(k, device=entries.sizes.device)
        used = (entries.sizes > sides * sides).sum(-1, keepdim=True).clamp_min(1)  # ceil(sqrt(size)), exactly
        return entries.evenly(used, k)
