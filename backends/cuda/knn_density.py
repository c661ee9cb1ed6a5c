"""kNN density from tiles of products: the third pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import probable_error

from .tiles import Pairs, Plan, distances


def knn_density(pairs: Pairs, num_neighbors: Tensor, channels: int, plan: Plan) -> Tensor:
    """fp32 [F, pitch]: minus the mean d^2 to the k nearest tokens, itself among them; 0 where there is no token.

    num_neighbors: int64 [F], from 1 to 5. d^2 is per channel.
    """
    density = torch.empty_like(pairs.norms)
    blocks, bound = plan.pitch // plan.rows, probable_error(channels, torch.float32)
    arguments = (*pairs, num_neighbors, density, plan.pitch, plan.width, bound, 1 / channels, blocks)
    _knn_density[(len(density) * blocks,)](*arguments, **plan.options(pairs.high.dtype))
    return density


@triton.jit
def _knn_density(
    gram, tokens, low, flags, norms, lengths, first, copies, num_neighbors, density, pitch, width, bound, scale,
    blocks,
    STORED: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a frame against all of it; the four smallest distances of each stay in registers."""
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    start_row = (tl.program_id(0) % blocks) * ROWS
    length = tl.load(lengths + frame)
    rows = start_row + tl.arange(0, ROWS)
    gram += frame * pitch * pitch
    tokens += frame * pitch * width
    low += frame * pitch * width
    flags += frame * (width // STEP)
    norms += frame * pitch
    first += frame * pitch
    copy = tl.load(copies + frame)
    infinity = float("inf")
    one = tl.full((ROWS,), infinity, tl.float32)
    two = tl.full((ROWS,), infinity, tl.float32)
    three = tl.full((ROWS,), infinity, tl.float32)
    four = tl.full((ROWS,), infinity, tl.float32)
    for start in range(0, tl.where(start_row < length, length, 0), TILE):
        columns = start + tl.arange(0, TILE)
        values = distances(
            gram, tokens, low, flags, norms, first, copy, rows, columns, pitch, width, bound, STORED, SPLIT, STEP
        )
        hidden = (columns[None, :] >= length) | (columns[None, :] == rows[:, None])
        values = tl.where(hidden, infinity, values)
        for _ in tl.static_range(4):
            nearest, place = tl.min(values, axis=1, return_indices=True)
            values = tl.where(columns[None, :] - start == place[:, None], infinity, values)
            four = tl.minimum(four, tl.maximum(three, nearest))
            three = tl.minimum(three, tl.maximum(two, nearest))
            two = tl.minimum(two, tl.maximum(one, nearest))
            one = tl.minimum(one, nearest)
    k = tl.load(num_neighbors + frame)
    total = tl.where(k > 1, one, 0.0) + tl.where(k > 2, two, 0.0)
    total = total + tl.where(k > 3, three, 0.0) + tl.where(k > 4, four, 0.0)
    tl.store(density + frame * pitch + rows, tl.where(rows < length, -total * (scale / k.to(tl.float32)), 0.0))
