"""MMR: maximal marginal relevance, the core of IDPruner (Carbonell and Goldstein, 1998; arXiv 2602.13315)."""

import math
from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import cosines, dropped, spread, tower_windows
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("mmr")
@dataclass(frozen=True)
class MMR(Method):
    """Each step keeps the token argmax_i lambda imp_i - (1 - lambda) max_{j kept} cos(x_i, x_j), the first one (or
    the first parallel_k) by importance alone. Importances are scaled to 0..1 in each frame.

    IDPruner's importances come from a scorer that was trained for it. Here they are the attention that tokens receive
    in a block of the vision tower (the view's tower_saliency). Ties go to the first token.

    Args:
        ratio: fraction of a frame's tokens to keep: round(n * ratio) of n.
        mmr_lambda: the weight of importance; 1 is importance alone.
        parallel_k: how many tokens are kept in one step, by the same scores.
        tower_block: the block of the vision tower whose attention is used; negative: counted from the end.
        tower_windows: what to do if that block attends in windows, see choosing.tower_windows.
        dropped: what becomes of the other tokens, see choosing.dropped.
    """

    ratio: float = share(0.25)
    mmr_lambda: float = setting(0.5, least=0, most=1)
    parallel_k: int = setting(1, least=1)
    tower_block: int = -1
    tower_windows: str = tower_windows()
    dropped: str = dropped()

    needs = frozenset({"tokens", "tower_saliency"})

    def kept(self, tokens: int) -> int:
        return max(round(tokens * self.ratio), 1)

    def group(self, view: View) -> Grouping:
        view.require("mmr", "tokens", "tower_saliency")
        return Grouping.of_kept(view, self.chosen(view), self.dropped)

    def chosen(self, view: View) -> torch.Tensor:
        """[F, most] int64 tokens in order of choice."""
        importance = spread(view.tower_saliency.float(), view.present)
        weighted = torch.stack([importance, self.mmr_lambda * importance])
        importance, relevance = weighted.masked_fill_(~view.present, -math.inf)
        alike = cosines(view.tokens)
        redundant = torch.full_like(relevance, -math.inf)
        scores, parts, count = importance, [], 0
        while count < view.most:
            step = min(self.parallel_k, view.most - count)
            picked = scores.sort(dim=1, descending=True, stable=True).indices[:, :step]
            like = alike.gather(1, picked[:, :, None].expand(-1, -1, alike.shape[2])).amax(1)
            relevance = relevance.scatter(1, picked, -math.inf)
            redundant = torch.maximum(redundant, like)
            scores = relevance - (1 - self.mmr_lambda) * redundant
            parts.append(picked)
            count += step
        return torch.cat(parts, dim=1)
