"""DivPrune: keeps the tokens that are farthest from each other (Alvar et al., arXiv 2503.02175, section 3.2)."""

import math
from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import cosines, dropped, rounding, row
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View


@register("divprune")
@dataclass(frozen=True)
class DivPrune(Method):
    """Greedy max-min diversity: with d_ij = 1 - cos(x_i, x_j) the first token is argmax_i min_{j != i} d_ij, and each
    later one argmax_i min_{j kept} d_ij.

    The published code may choose a token twice once all distances are about 0, and so keeps fewer than asked for where
    tokens are equal. Here no token is chosen twice, distances within rounding error count as 0, and ties go to the
    first token. The published code prunes only a prompt's first image; here each frame is a cell.

    Args:
        ratio: fraction of a frame's tokens to keep: round(n * ratio) of n, where halves round to even.
        dropped: what becomes of the other tokens, see choosing.dropped.
    """

    ratio: float = share(0.1)
    dropped: str = dropped()

    def kept(self, tokens: int) -> int:
        return max(round(tokens * self.ratio), 1)

    def group(self, view: View) -> Grouping:
        view.require("divprune", "tokens")
        return Grouping.of_kept(view, farthest(cosine_distances(view.tokens), view), self.dropped)


def cosine_distances(tokens: torch.Tensor) -> torch.Tensor:
    """[F, N, N] fp32, 1 - cosine of all pairs of tokens [F, N, C]; 0 if it is within rounding error."""
    away = cosines(tokens).neg_().add_(1)
    return away.mul_(away > rounding(tokens.shape[-1]))


def farthest(away: torch.Tensor, view: View) -> torch.Tensor:
    """[F, most] int64 tokens in order of choice, from distances `away` [F, N, N], whose diagonal is overwritten."""
    absent = ~view.present
    away.diagonal(dim1=1, dim2=2).fill_(math.inf)
    nearest = away.masked_fill(absent[:, None], math.inf).amin(-1).masked_fill_(absent, -math.inf)
    chosen = [nearest.argmax(1, keepdim=True)]
    nearest = torch.full_like(nearest, math.inf).masked_fill_(absent, -math.inf)
    for _ in range(view.most - 1):
        nearest = torch.minimum(nearest, row(away, chosen[-1])).scatter_(1, chosen[-1], -math.inf)
        chosen.append(nearest.argmax(1, keepdim=True))
    return torch.cat(chosen, dim=1)
