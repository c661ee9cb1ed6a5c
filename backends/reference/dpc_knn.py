"""Density-peaks clustering on k nearest neighbours (DPC-KNN), batched over frames: the specification.

Source: Du et al. 2016; used on visual tokens by TCFormer and Chat-UniVi (arXiv 2311.08046, section 3.2).

Only one matrix of distances per frame grows with N x N. It is computed in place and read in slices.
"""

import math

import torch

from ppe_npu.backends import device
from ppe_npu.backends.common import MAX_NEIGHBORS

FLAT = 32  # in eps: how far rounding in a deep tower moves the tokens of a flat frame (docs/numerics.md)

# Elements of a temporary tensor. A CPU is fastest if they fit in a core's cache and their memory is reused.
TOKENS_AT_ONCE = 2**20
DISTANCES_AT_ONCE = 2**18
MOST_SLICES = 16  # for inputs of any size, because an accelerator spends time on every call


@torch.no_grad()
def dpc_knn(
    tokens: torch.Tensor,
    valid: torch.Tensor | None,
    budgets: torch.Tensor,
    max_groups: int,
    num_neighbors: torch.Tensor,
    strict: bool = False,
    most_neighbors: int = MAX_NEIGHBORS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Group the tokens of every frame around its density peaks.

    With d_ij^2 = |x_i - x_j|^2 / C, the density of token i is rho_i = exp(-mean of d_ij^2 over its k nearest tokens,
    itself included), and its delta is the distance to the nearest denser token (the largest distance of the frame where
    there is none). The tokens with the greatest delta * rho are centres; every other token joins its nearest centre.
    Densities and scores are ranked in log space, where nothing underflows. Ties go to the lower index: of two equally
    dense tokens the first counts as denser. Of two equally near centres a token joins the one with the higher score.

    Args:
        tokens: [F, N, C] floating point; distances are taken in fp32 (fp64 for fp64 tokens).
        valid: [F, N] bool, False where a frame has no token, or None if every frame has N. A frame's tokens come first.
        budgets: [F] int64, groups of each frame, 1 <= budgets[f] <= its number of tokens.
        max_groups: M, at least the largest budget (a host number, so that no shape depends on device data).
        num_neighbors: [F] int64, k of each frame, at most its number of tokens and at most most_neighbors.
        strict: if true, equally dense tokens do not count as denser than each other.
        most_neighbors: an upper bound of k (a host number, like max_groups).

    Returns:
        centers: [F, M] int64, token index of each centre in descending score; entries from budgets[f] on are in range
            and mean nothing.
        labels: [F, N] int64, for each token the rank of its centre, -1 where not valid.
    """
    squared = _squared_distances(tokens, valid)
    log_density = _log_density(squared, num_neighbors, most_neighbors)
    score = 0.5 * nearest_denser(squared, log_density, strict).log() + log_density
    if valid is not None:
        score.masked_fill_(~valid, -torch.inf)
    order, rank = ranked(score)
    centers = order[:, :max_groups]
    labels = torch.where(rank < budgets[:, None], rank, nearest_center(squared, centers, budgets))
    return centers, labels if valid is None else labels.masked_fill_(~valid, -1)


def _squared_distances(tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """[F, N, N] d_ij^2: symmetric, infinite where i or j is not valid; equal tokens have equal rows, to the last bit.

    On some machines the rounding of a product depends on the positions of its tokens in the matrix; so does that of the
    features of a picture's flat areas. So the computed distance of two equal tokens is not always zero, and their
    distances to a third token may differ. Three rules mend this (docs/numerics.md derives their bounds). A d^2 below
    `probable_error` is zero; between tokens with the same checksum, so is one below `largest_error`. Each token takes
    the row and column of the first token at distance zero: token 0 in a frame that is all flat (`flat_square`).
    """
    squared, sums = _gram(tokens, valid)
    scale, bound = 1 / tokens.shape[-1], probable_error(tokens.shape[-1], squared.dtype)
    norms = squared.diagonal(dim1=1, dim2=2) * scale
    flat = (norms if valid is None else norms.masked_fill(~valid, 0)).amax(1) <= flat_square(tokens) * scale
    if valid is not None:
        norms.masked_fill_(~valid, torch.inf)
        sums = torch.where(valid, sums, torch.arange(-1, -1 - sums.shape[1], -1, device=sums.device, dtype=sums.dtype))
    for rows in _row_slices(squared):
        # |x_i|^2 + |x_j|^2 - 2 x_i x_j, on and above the diagonal.
        above, both = squared[:, rows, rows.start :], norms[:, rows, None] + norms[:, None, rows.start :]
        above.mul_(-2 * scale).add_(both)
        above.mul_(above >= both.mul_(bound))  # three times as fast as masked_fill_ on a CPU
        # Products may be asymmetric in the last bit, but ties must not depend on which of the two sides is read.
        square = squared[:, rows, rows]
        square.copy_(square.triu() + square.triu(1).transpose(1, 2))
        squared[:, rows.stop :, rows] = squared[:, rows, rows.stop :].transpose(1, 2)
    if device.asks_freely(tokens.device) and not flat.any():
        # If no two tokens of a frame are at distance zero or have the same checksum, there is nothing to mend.
        apart = all((squared[:, rows].count_nonzero(-1) >= squared.shape[1] - 1).all() for rows in _row_slices(squared))
        if apart and (sums.sort(dim=1).values.diff(dim=1) != 0).all():
            return squared
    first = first_equal(squared, norms, sums, largest_error(tokens.shape[-1], squared.dtype))
    return share_rows(squared, first.masked_fill_(flat[:, None] & norms.isfinite(), 0))


def probable_error(channels: int, dtype: torch.dtype) -> float:
    """Probable bound on the rounding error of d_ij^2, relative to |x_i|^2 + |x_j|^2: 2 eps sqrt(C)."""
    return 2 * torch.finfo(dtype).eps * math.sqrt(channels)


def largest_error(channels: int, dtype: torch.dtype) -> float:
    """Bound on the rounding error of d_ij^2 in any order of summation, relative to |x_i|^2 + |x_j|^2: eps (C + 2)."""
    return torch.finfo(dtype).eps * (channels + 2)


def flat_square(tokens: torch.Tensor) -> torch.Tensor:
    """[F] (32 eps |x_0|)^2 of tokens [F, N, C]: if none is farther from the mean, all are equal but for rounding."""
    first = tokens[:, 0].to(torch.promote_types(tokens.dtype, torch.float32))
    return (FLAT * torch.finfo(first.dtype).eps) ** 2 * first.square().sum(-1)


def first_equal(squared: torch.Tensor, norms: torch.Tensor, sums: torch.Tensor, bound: float) -> torch.Tensor:
    """[F, N] int64, for each token the first one at distance zero. norms and sums are [F, N]."""
    places = torch.arange(squared.shape[1], device=squared.device, dtype=torch.int32)
    first = torch.empty_like(sums, dtype=torch.int64)
    for rows in _row_slices(squared):
        before = slice(0, rows.stop)
        block, limit = squared[:, rows, before], (norms[:, rows, None] + norms[:, None, before]).mul_(bound)
        # < instead of <=: in padding both sides are infinite, and its checksum may equal a token's.
        equal = (sums[:, rows, None] == sums[:, None, before]).logical_and_(block < limit).logical_or_(block == 0)
        first[:, rows] = torch.where(equal, places[before], places[rows, None]).amin(-1)
    return first


def share_rows(squared: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Gives every token i the row and the column of token first[i] in squared [F, N, N], in place; returns squared."""
    for rows in _row_slices(squared):
        block = squared[:, rows]
        block.copy_(block.gather(2, first[:, None].expand_as(block)))
    for rows in reversed(_row_slices(squared)):  # first[i] <= i, so every row is read before it is written
        block = squared[:, rows]
        block.copy_(squared.gather(1, first[:, rows, None].expand_as(block)))
    return squared


def _gram(tokens: torch.Tensor, valid: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """[F, N, N] products of all pairs of tokens, centred on the mean of their frame, and their [F, N] `checksums`.
    Products with padding are finite but meaningless.

    Tokens are centred because a common offset would cost the products digits; distances do not depend on it.
    """
    frames, count, channels = tokens.shape
    dtype, bits = (torch.float64, torch.int64) if tokens.dtype == torch.float64 else (torch.float32, torch.int32)
    gram = torch.empty(frames, count, count, dtype=dtype, device=tokens.device)
    sums = torch.empty(frames, count, dtype=bits, device=tokens.device)
    slices = _slices(frames, count * channels, TOKENS_AT_ONCE)
    buffer = torch.empty(slices[0].stop, count, channels, dtype=dtype, device=tokens.device)
    for part in slices:
        x = buffer[: part.stop - part.start].copy_(tokens[part])
        if valid is None:
            x -= x.sum(1, keepdim=True) / count
        else:
            padding = ~valid[part, :, None]
            x.masked_fill_(padding, 0)
            x -= x.sum(1, keepdim=True) / (~padding).sum(1, keepdim=True).clamp_min(1)
        sums[part] = checksums(x)
        torch.bmm(x, x.transpose(1, 2), out=gram[part])
    return gram, sums


def checksums(x: torch.Tensor) -> torch.Tensor:
    """[..., n] integers of contiguous fp32 or fp64 tokens [..., n, C]: a token's bits as integers, summed over C with
    wrap-around, so that the order of summation does not matter."""
    bits = torch.int64 if x.dtype == torch.float64 else torch.int32
    return x.view(bits).sum(-1, dtype=bits)


def _log_density(squared: torch.Tensor, num_neighbors: torch.Tensor, most: int) -> torch.Tensor:
    """[F, N] negative mean squared distance to the k nearest tokens, including the token itself at distance zero."""
    total, count = squared.new_zeros(squared.shape[:2]), min(most, squared.shape[1]) - 1
    for rows in _row_slices(squared):
        others = squared[:, rows].clone()
        others.diagonal(rows.start, dim1=1, dim2=2).fill_(torch.inf)
        if count >= MAX_NEIGHBORS:
            others = others.topk(count, largest=False).values
        for found in range(count):
            if count >= MAX_NEIGHBORS:
                nearest = others[:, :, found]
            else:  # on a CPU topk takes twice as long to find so few among some hundred
                smallest, index = others.min(-1, keepdim=True)
                others.scatter_(-1, index, torch.inf)
                nearest = smallest[:, :, 0]
            total[:, rows] += torch.where(found + 1 < num_neighbors[:, None], nearest, 0)
    return -total / num_neighbors[:, None]


def nearest_denser(squared: torch.Tensor, log_density: torch.Tensor, strict: bool) -> torch.Tensor:
    """[F, N] squared distance to the nearest denser token.

    The densest token has none. Its density and its delta, the largest distance, are the greatest of the frame, so its
    score is the highest in any case, and its distance is set to the largest finite number.
    """
    order, rank = ranked(log_density)
    if strict:
        # Equally dense tokens all get the rank of the first of them.
        fallen = log_density.gather(1, order).diff(dim=1, prepend=log_density.new_full((len(order), 1), torch.nan)) != 0
        places = torch.arange(order.shape[1], device=order.device)
        rank = torch.where(fallen, places, 0).cummax(1).values.gather(1, rank)
    rank = rank.to(squared.dtype)
    nearest, largest = torch.empty_like(log_density), torch.finfo(squared.dtype).max
    for rows in _row_slices(squared):
        # 0 for a denser token, 1 for any other. Computed by arithmetic, because on a CPU torch.where branches at every
        # element, and branches without a pattern take several times as long.
        not_denser = (rank[:, None, :] - (rank[:, rows, None] - 1)).clamp_(0, 1)
        nearest[:, rows] = torch.add(squared[:, rows], not_denser, alpha=largest).amin(-1)
    return nearest


def nearest_center(squared: torch.Tensor, centers: torch.Tensor, budgets: torch.Tensor) -> torch.Tensor:
    """[F, N] rank of the nearest of the first budgets[f] centres, the lowest if several are equally near."""
    nearest = centers.new_empty(squared.shape[:2])
    unused = torch.arange(centers.shape[1], device=centers.device) >= budgets[:, None]
    penalty = torch.where(unused, torch.inf, 0).to(squared.dtype)[:, None, :]
    for rows in _row_slices(squared):
        block = squared[:, rows]
        to_centers = block.gather(2, centers[:, None, :].expand(-1, block.shape[1], -1)).add_(penalty)
        nearest[:, rows] = to_centers.min(-1).indices  # the first of equal values
    return nearest


def ranked(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices [F, N] in descending value, the lower index first among equals, and the rank [F, N] of each value."""
    order = torch.sort(values, dim=1, descending=True, stable=True).indices
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return order, torch.empty_like(order).scatter_(1, order, places)


def _row_slices(squared: torch.Tensor) -> list[slice]:
    """Slices of the rows of all frames, such that [F, rows, N] has about DISTANCES_AT_ONCE elements."""
    frames, count, _ = squared.shape
    return _slices(count, frames * count, DISTANCES_AT_ONCE)


def _slices(count: int, size: int, at_once: int) -> list[slice]:
    """At most MOST_SLICES slices of `count` items of `size` numbers each, with about `at_once` numbers per slice."""
    step = max(1, at_once // max(1, size), math.ceil(count / MOST_SLICES))
    return [slice(start, min(start + step, count)) for start in range(0, max(1, count), step)]
