"""Density-peaks clustering of a part of a cell, with any number of neighbours (Du et al., 2016).

ppe_npu.backends.dpc_knn implements the same rule as an operator, for whole cells and up to five neighbours.
"""

import torch

from ppe_npu.methods.choosing import exact


def density_peaks(
    tokens: torch.Tensor, valid: torch.Tensor, wanted: torch.Tensor, most: int, neighbors: torch.Tensor, widest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster around the tokens with the largest rho_i * delta_i.

    rho_i is exp(-mean of d_ij^2 over the nearest tokens, including itself); delta_i is the distance to the nearest
    denser token (the largest value if there is none); d_ij is the Euclidean distance divided by sqrt(C). Ties go to the
    lower index.

    Args:
        tokens: [F, N, C], converted to fp32. valid: [F, N] bool; a cell's tokens come first.
        wanted: [F] int64, how many clusters each cell has, at most its tokens. most: an upper bound on `wanted`.
        neighbors: [F] int64, the number of tokens that define a density, fewer where there are fewer. widest: an upper
            bound on `neighbors`.

    Returns:
        centers: [F, most] int64; entries from wanted[f] on are meaningless.
        labels: [F, N] int64, the number of each token's nearest centre (a centre's is its own); -1 where not valid.
    """
    squares = _squares(tokens, valid)
    used = torch.minimum(neighbors, valid.sum(1)).clamp_min(1)[:, None]
    nearest = squares.topk(min(widest, squares.shape[2]), dim=-1, largest=False).values
    counted = torch.arange(nearest.shape[2], device=tokens.device) < used[:, :, None]
    density = -torch.where(counted, nearest, 0).sum(-1) / used
    order = density.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    place = torch.arange(order.shape[1], device=order.device)
    rank = torch.empty_like(order).scatter_(1, order, place.expand_as(order))
    # The densest token has no denser one; with the largest distance it comes first.
    largest = torch.finfo(squares.dtype).max
    away = squares.masked_fill(rank[:, None] >= rank[:, :, None], largest).amin(-1)
    score = (0.5 * away.log() + density).masked_fill(~valid, -torch.inf)
    centers = score.sort(dim=1, descending=True, stable=True).indices[:, :most]
    unused = place[:most] >= wanted[:, None]
    among = squares.gather(2, centers[:, None].expand(-1, squares.shape[1], -1)).masked_fill(unused[:, None], torch.inf)
    spare = torch.zeros_like(order[:, :1])
    at = torch.where(unused, order.shape[1], centers)  # so that each of several equal centres gets its own number
    labels = torch.cat([among.argmin(-1), spare], dim=1).scatter(1, at, place[:most].expand_as(at))
    return centers, labels[:, :-1].masked_fill(~valid, -1)


def _squares(tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """[F, N, N] fp32 squared distances divided by C: symmetric; 0 from a token to itself and within rounding error;
    infinite to tokens that are not valid."""
    with exact(tokens):
        x = tokens.detach().float().masked_fill(~valid[:, :, None], 0)
        # The mean is subtracted because it does not affect distances, but would cost the products precision.
        x = (x - x.sum(1, keepdim=True) / valid.sum(1).clamp_min(1)[:, None, None]).masked_fill(~valid[:, :, None], 0)
        norms = (x * x).sum(-1)
        both = norms[:, None] + norms[:, :, None]
        squares = torch.baddbmm(both, x, x.mT, alpha=-2)
        squares = torch.maximum(squares, squares.mT)  # a product need not be symmetric to the last bit
        within = squares <= 2 * torch.finfo(squares.dtype).eps * x.shape[-1] ** 0.5 * both
        squares = squares.masked_fill(within, 0) / x.shape[-1]
        squares.diagonal(dim1=1, dim2=2).zero_()
        return squares.masked_fill(~valid[:, None], torch.inf)
