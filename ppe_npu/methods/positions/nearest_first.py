"""The rule in the paper's text (PPE, arXiv 2510.22936, section 3)."""

import torch

from ppe_npu.methods.positions.base import Rule, register
from ppe_npu.methods.positions.entries import Entries


@register("nearest_first")
class NearestFirst(Rule):
    """The k members nearest to the representative, listed by nearness (the paper's text).

    Members that were merged before each contribute one original token at a time, nearest member first.
    """

    by_nearness = True

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        pick = torch.arange(k, device=entries.sizes.device)
        return entries.listed(pick % entries.sizes.clamp(1, k), entries.by_turns())
