"""SCOPE: keeps tokens by saliency times coverage (Deng et al., arXiv 2510.24214)."""

from dataclasses import dataclass
from typing import Literal

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import cosines, dropped, row, tower_windows
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting

_STEP = 2.0**-20  # no coarser than a cosine's rounding error in fp32, see choosing.rounding


@register("scope")
@dataclass(frozen=True)
class Scope(Method):
    """Greedy coverage, weighted by saliency: with S the cosines of all pairs, and c_i the largest of 0 and S_ij over
    the tokens j that are kept so far, each step keeps the token with the largest sum_i max(0, S_ij - c_i) * a_j^alpha.

    The published code reads a from the class token of a CLIP tower; here it is the attention that a token receives in
    a block of the tower (as a factor, its scale does not matter). Ties go to the first token.

    Args:
        ratio: fraction of a frame's tokens to keep.
        alpha: exponent of saliency; None: saliency is not used, and the tower is not looked into.
        combined: gains times saliency ("multi"), or plus saliency ("add", which depends on its scale: it sums to 1).
        tower_block: the block of the vision tower whose attention is used; negative: counted from the end.
        tower_windows: what to do if that block attends in windows, see choosing.tower_windows.
        dropped: what becomes of the other tokens, see choosing.dropped.
    """

    ratio: float = share(1 / 9)
    alpha: float | None = setting(1.0, least=0)
    combined: Literal["multi", "add"] = "multi"
    tower_block: int = -1
    tower_windows: str = tower_windows()
    dropped: str = dropped()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tokens"} if self.alpha is None else {"tokens", "tower_saliency"})

    @torch.no_grad()
    def group(self, view: View) -> Grouping:
        view.require("scope", *sorted(self.needs))
        return Grouping.of_kept(view, covering(view, self._saliency(view), self.combined), self.dropped)

    def _saliency(self, view: View) -> torch.Tensor:
        if self.alpha is None:
            return torch.ones_like(view.tokens[..., 0], dtype=torch.float32)
        return view.tower_saliency.float() ** self.alpha


def covering(view: View, saliency: torch.Tensor, combined: str = "multi") -> torch.Tensor:
    """[F, most] int64 tokens in order of choice. saliency: [F, N].

    Gains are sums of whole multiples of _STEP, so that they are exact: tokens that cover equally much have equal gains,
    such as the last two of a pair, and the first is chosen, whatever the order of summation.
    """
    alike = (cosines(view.tokens) / _STEP).round_().int()
    covered, taken = torch.zeros_like(alike[:, 0]), ~view.present
    chosen, most = [], torch.empty_like(alike)
    wide = torch.int32 if alike.shape[1] * (1 / _STEP) < 2**31 else torch.int64
    for _ in range(view.most):
        sums = torch.maximum(alike, covered[:, None], out=most).sum(-1, dtype=wide)
        gains = (sums - covered.sum(1, keepdim=True, dtype=wide)).float() * _STEP
        gains = gains * saliency if combined == "multi" else gains + saliency
        chosen.append(gains.masked_fill_(taken, -torch.inf).argmax(1, keepdim=True))
        taken = taken.scatter(1, chosen[-1], True)
        covered = torch.maximum(covered, row(alike, chosen[-1]))
    return torch.cat(chosen, dim=1)
