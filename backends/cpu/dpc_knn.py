"""Clustering on a CPU: as ppe_npu.backends.reference.dpc_knn says, in half of the products and few passes over them.

A frame's products are made once, on and above the diagonal (squares.py), and stay in a core's cache with the few frames
beside them. Its nearest tokens are found by elementwise minima of halves, which a CPU does for sixteen numbers at a
time. Every frame is computed by itself, whatever stands beside it.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ppe_npu.backends.common import MAX_NEIGHBORS
from ppe_npu.backends.reference.dpc_knn import nearest_center, nearest_denser, ranked

from .squares import Squares

NEAREST = MAX_NEIGHBORS - 1  # beside the token itself
LEAST_CLASSES = 512  # larger frames leave a core's cache when they are folded
DISTANCES_AT_ONCE = 2**18
LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.float64)}


@torch.no_grad()
def dpc_knn(
    tokens: Tensor,
    valid: Tensor | None,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    strict: bool = False,
    most_neighbors: int = MAX_NEIGHBORS,
) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.dpc_knn`. The largest tensor is of a few frames' distances, or of one."""
    frames, count, _ = tokens.shape
    centers = budgets.new_empty(frames, max_groups)
    labels = budgets.new_empty(frames, count)
    sizes = [count] * frames if valid is None else valid.sum(1).tolist()
    squares = Squares(tokens, max(1, min(frames, DISTANCES_AT_ONCE // count**2)), sizes)
    for start in range(0, frames, squares.frames):
        part = slice(start, min(start + squares.frames, frames))
        squared = squares.of(part, sizes[part])
        nearest = _smallest(squared, most_neighbors)
        if squares.mended(part, sizes[part], nearest[0]):
            nearest = _smallest(squared, most_neighbors)
        found = _clustered(squared, nearest, sizes[part], budgets[part], max_groups, num_neighbors[part], strict)
        centers[part], labels[part] = found
    return centers, labels


def _smallest(squared: Tensor, most_neighbors: int = MAX_NEIGHBORS) -> Tensor:
    """[NEAREST or more, f, N] the smallest of each column of [f, N, N], in order; infinite where there are fewer."""
    count = squared.shape[1]
    if most_neighbors > MAX_NEIGHBORS:
        return squared.topk(min(most_neighbors - 1, count), largest=False).values.movedim(2, 0)
    return _of_classes(squared) if count >= LEAST_CLASSES else _folded(squared)


def _of_classes(squared: Tensor) -> Tensor:
    """By classes of places: the smallest lie in as many classes whose own smallest are the smallest."""
    width = max(NEAREST, 2 * math.isqrt(squared.shape[2]))
    given = _filled(squared, 2, width)
    classes = given.unflatten(2, (-1, width)).amin(2).topk(NEAREST, largest=False).indices
    places = (classes[:, :, :, None] + torch.arange(0, given.shape[2], width, device=given.device)).flatten(2)
    return given.gather(2, places).topk(NEAREST, largest=False).values.movedim(2, 0)


def _folded(squared: Tensor) -> Tensor:
    """By halves: every row keeps, in order, the smallest of what it has met, and merges them with another's."""
    four = _fours(_filled(squared, 1, NEAREST))
    while four.shape[2] > 1:
        half = four.shape[2] // 2
        _merge(four[:, :, :half], four[:, :, -half:])
        four = four[:, :, : four.shape[2] - half]
    return four[:, :, 0]


def _filled(squared: Tensor, dim: int, width: int) -> Tensor:
    """With infinite numbers up to a multiple of `width` along a dimension."""
    missing = -squared.shape[dim] % width
    return functional.pad(squared, (0, 0) * (2 - dim) + (0, missing), value=torch.inf) if missing else squared


def _fours(given: Tensor) -> Tensor:
    """[4, f, n / 4, c] of [f, n, c]: every quarter's rows beside those of the others, in order."""
    first, second = given.chunk(2, 1)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    (low, other), (high, beside) = low.chunk(2, 1), high.chunk(2, 1)
    out = given.new_empty(4, *low.shape)
    torch.minimum(low, other, out=out[0])
    torch.maximum(high, beside, out=out[3])
    middle, among = torch.maximum(low, other), torch.minimum(high, beside)
    torch.minimum(middle, among, out=out[1])
    torch.maximum(middle, among, out=out[2])
    return out


def _merge(one: Tensor, other: Tensor) -> None:
    """Make `one` the four smallest, in order, of it and the other, which are both in order [4, ...]."""
    for number in range(4):
        torch.minimum(one[number], other[3 - number], out=one[number])  # they rise, then fall
    low, high = torch.minimum(one[:2], one[2:]), torch.maximum(one[:2], one[2:])
    for first, pair in ((0, low), (2, high)):
        torch.minimum(*pair, out=one[first])
        torch.maximum(*pair, out=one[first + 1])


def _clustered(
    squared: Tensor,
    nearest: Tensor,
    sizes: list[int],
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    strict: bool,
) -> tuple[Tensor, Tensor]:
    """Centres [f, M] and labels [f, N] of a few frames, whose nearest distances are _smallest's."""
    count = squared.shape[1]
    absent = None
    if min(sizes) < count:
        on = squared.device
        absent = torch.arange(count, device=on) >= torch.tensor(sizes, device=on)[:, None]
    log_density = _log_density(nearest, num_neighbors)
    score = 0.5 * nearest_denser(squared, log_density, strict).clamp_max_(LARGEST[squared.dtype]).log() + log_density
    if absent is not None:
        score.masked_fill_(absent, -torch.inf)
    order, rank = ranked(score)
    centers = order[:, :max_groups]
    labels = torch.where(rank < budgets[:, None], rank, nearest_center(squared, centers, budgets))
    return centers, labels if absent is None else labels.masked_fill_(absent, -1)


def _log_density(nearest: Tensor, num_neighbors: Tensor) -> Tensor:
    """[f, N] minus the mean squared distance to the k nearest tokens, the token itself included, at distance zero."""
    total = torch.zeros_like(nearest[0])
    for found, squared in enumerate(nearest, start=1):
        total += torch.where(found < num_neighbors[:, None], squared, 0)
    return -total / num_neighbors[:, None]
