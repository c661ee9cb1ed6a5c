"""Clustering on a CPU by the rules of reference/dpc_knn.py, with half of its products and few passes over them.

A few frames are processed at a time, so that their products, which are computed once, on and above the diagonal
(squares.py), stay in a core's cache. Nearest tokens are found by elementwise minima of halves, of which a CPU computes
sixteen at a time. The result of a frame does not depend on the other frames of its batch.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ppe_npu.backends.common import MAX_NEIGHBORS
from ppe_npu.backends.reference.dpc_knn import nearest_center, nearest_denser, ranked

from .squares import Squares

NEAREST = MAX_NEIGHBORS - 1  # without the token itself
LEAST_CLASSES = 512  # frames of this many tokens would leave a core's cache in _folded
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
    """See `ppe_npu.backends.dpc_knn`. The largest tensor holds the distances of a few frames, or of one large frame."""
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
    """[NEAREST or more, f, N] the smallest of each column of [f, N, N], ascending; infinite where there are fewer."""
    count = squared.shape[1]
    if most_neighbors > MAX_NEIGHBORS:
        return squared.topk(min(most_neighbors - 1, count), largest=False).values.movedim(2, 0)
    return _of_classes(squared) if count >= LEAST_CLASSES else _folded(squared)


def _of_classes(squared: Tensor) -> Tensor:
    """[NEAREST, f, N] the smallest of each row, ascending. Columns are divided into classes: the four smallest values
    of a row lie in the four classes with the smallest minima, so only these are searched."""
    width = max(NEAREST, 2 * math.isqrt(squared.shape[2]))
    given = _filled(squared, 2, width)
    classes = given.unflatten(2, (-1, width)).amin(2).topk(NEAREST, largest=False).indices
    places = (classes[:, :, :, None] + torch.arange(0, given.shape[2], width, device=given.device)).flatten(2)
    return given.gather(2, places).topk(NEAREST, largest=False).values.movedim(2, 0)


def _folded(squared: Tensor) -> Tensor:
    """[NEAREST, f, N] the smallest of each column, ascending. The rows are halved until one is left: every row holds
    the four smallest values so far, and is merged with a row of the other half."""
    four = _fours(_filled(squared, 1, NEAREST))
    while four.shape[2] > 1:
        half = four.shape[2] // 2
        _merge(four[:, :, :half], four[:, :, -half:])
        four = four[:, :, : four.shape[2] - half]
    return four[:, :, 0]


def _filled(squared: Tensor, dim: int, width: int) -> Tensor:
    """`squared`, padded with infinity to a multiple of `width` along dimension `dim`."""
    missing = -squared.shape[dim] % width
    return functional.pad(squared, (0, 0) * (2 - dim) + (0, missing), value=torch.inf) if missing else squared


def _fours(given: Tensor) -> Tensor:
    """[4, f, n / 4, c]: the corresponding values of the four quarters of [f, n, c], sorted in ascending order."""
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
    """Replaces `one` by the four smallest values of `one` and `other`. All are [4, ...] and ascending."""
    for number in range(4):
        torch.minimum(one[number], other[3 - number], out=one[number])  # the four smallest: a bitonic sequence
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
    """Centres [f, M] and labels [f, N] of a few frames. nearest: the result of _smallest()."""
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
    """[f, N] negative mean squared distance to the k nearest tokens, including the token itself at distance zero."""
    total = torch.zeros_like(nearest[0])
    for found, squared in enumerate(nearest, start=1):
        total += torch.where(found < num_neighbors[:, None], squared, 0)
    return -total / num_neighbors[:, None]
