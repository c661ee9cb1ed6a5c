"""HiPrune: keeps what a middle and the last tower block attend to (Liu et al., arXiv 2508.00553, section 4)."""

import math
from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import best, dropped, share_of, tower_windows
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("hiprune")
@dataclass(frozen=True)
class HiPrune(Method):
    """Keeps M tokens. The round(M * alpha / 5) that receive the most attention in a middle block are anchors. Their
    neighbours above, below, left and right (buffers) stay, too, and so do those of the others that receive the most
    attention in the last block (registers), until there are M.

    The published code defines neighbours by +-1 and +-width in raster order, so that the end of a row and the start of
    the next are neighbours, and the frame's first or last token is a neighbour of each anchor at the upper or lower
    edge; here neighbours are neighbours in the grid. If there are more than M anchors and buffers, the published code
    keeps them all; here the buffers of the best anchors stay. In Qwen2.5-VL the middle block attends in windows; as in
    the published port, attention is computed over the whole frame instead.

    Args:
        ratio: fraction of a frame's tokens to keep: round(n * ratio) of n.
        alpha: the fraction of these for anchors and buffers, if no two anchors share a neighbour. If it is above 0,
            there is at least one anchor where 5 tokens or more stay.
        object_layer, last_vit_layer: the middle and the last block; negative numbers count from the end. object_layer
            None: block 16 of 32, and likewise for other depths.
        tower_windows: how blocks that attend in windows are treated, see choosing.tower_windows. If only one of the two
            blocks is left, anchors and registers are both chosen by its attention.
        released: define neighbours as in the published code.
        dropped: what becomes of the other tokens, see choosing.dropped.
    """

    ratio: float = share(1 / 3)
    alpha: float = setting(0.1, least=0, most=1)
    object_layer: int | None = None
    last_vit_layer: int = -1
    tower_windows: str = tower_windows("frame")
    released: bool = False
    dropped: str = dropped()

    needs = frozenset({"tokens", "places", "tower_saliency"})

    @property
    def tower_blocks(self) -> tuple[int, ...]:
        named = () if self.object_layer is None else (self.object_layer,)
        return (*named, self.last_vit_layer)

    def blocks(self, count: int) -> tuple[int, ...]:
        named = super().blocks(count)
        return named if len(named) == 2 else (count // 2, *named)

    def kept(self, tokens: int) -> int:
        return max(round(tokens * self.ratio), 1)

    @torch.no_grad()
    def group(self, view: View) -> Grouping:
        view.require("hiprune", "places", "tower_saliency", blocks=2)
        seen = view.tower_saliency.float()
        middle, last = (seen, seen) if seen.dim() == 2 else seen.unbind(1)
        anchors = share_of(view.num_kept, self.alpha / 5, nearest=True)
        if self.alpha > 0:
            anchors = torch.where(view.num_kept >= 5, anchors.clamp_min(1), anchors)
        turn = _turns(view, middle, anchors, max(1, math.ceil(view.most * self.alpha / 5)), self.released)
        order = best(last, view, view.present.shape[1])
        kept = order.gather(1, turn.gather(1, order).sort(dim=1, stable=True).indices)
        return Grouping.of_kept(view, kept[:, : view.most], self.dropped)


def _turns(view: View, scores: torch.Tensor, anchors: torch.Tensor, most: int, released: bool) -> torch.Tensor:
    """[F, N] int64 order of choice: anchors by rank, then neighbours by the rank of their best anchor, then the rest.

    Args:
        scores: [F, N]. anchors: [F] int64, how many each cell has. most: an upper bound on anchors.
    """
    found = best(scores, view, most)
    ranks = torch.arange(found.shape[1], device=found.device)
    beside = (_raster_neighbours if released else _neighbours)(view, found) & (ranks < anchors[:, None])[:, :, None]
    others = 2 * most
    turn = torch.where(beside, most + ranks[:, None], others).amin(1)
    own = torch.where(ranks < anchors[:, None], ranks, turn.gather(1, found))
    return turn.scatter(1, found, own)


def _neighbours(view: View, found: torch.Tensor) -> torch.Tensor:
    """[F, A, N] bool, whether each token is directly above, below, left or right of each token in `found` [F, A]."""
    apart = view.places.gather(1, found[:, :, None].expand(-1, -1, 3))[:, :, None] - view.places[:, None]
    return (apart[..., 0] == 0) & (apart[..., 1:].abs().sum(-1) == 1)


def _raster_neighbours(view: View, found: torch.Tensor) -> torch.Tensor:
    """[F, A, N] bool as in _neighbours, but by +-1 and +-width in raster order, clamped to the frame's tokens."""
    width = view.places[..., 2].amax(1) + 1
    steps = torch.stack([-torch.ones_like(width), torch.ones_like(width), -width, width], dim=1)
    last = view.present.sum(1)[:, None, None] - 1
    beside = torch.minimum((found[:, :, None] + steps[:, None]).clamp_min(0), last)
    tokens = torch.arange(view.present.shape[1], device=found.device)
    return (beside[..., None] == tokens).any(2)
