"""kNN density from tiles of products: the third pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Centred, Plan, products, squared


def knn_density(
    gram: Tensor, tokens: Centred, norms: Tensor, lengths: Tensor, num_neighbors: Tensor, channels: int, plan: Plan
) -> Tensor:
    """fp32 [F, pitch]: minus the mean d^2 to the k nearest tokens, itself among them; 0 where there is no token.

    gram, tokens, norms: as `gram` makes them. num_neighbors: int64 [F], from 1 to 5. d^2 is per channel.
    """
    density = torch.empty_like(norms)
    blocks = plan.pitch // plan.rows
    arguments = (gram, *tokens, norms, lengths, num_neighbors, density, plan.pitch, plan.width, 1 / channels, blocks)
    _knn_density[(len(norms) * blocks,)](*arguments, SPLIT=tokens.split, **plan.passes, **plan.launch)
    return density


@triton.jit
def _knn_density(
    gram, tokens, low, flags, norms, lengths, num_neighbors, density, pitch, width, scale, blocks,
    STORED: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a frame against all of it; the four smallest distances of each stay in registers."""
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * ROWS
    length = tl.load(lengths + frame)
    rows = first + tl.arange(0, ROWS)
    gram += frame * pitch * pitch
    tokens += frame * pitch * width
    low += frame * pitch * width
    flags += frame * (width // STEP)
    norms += frame * pitch
    row_norms = tl.load(norms + rows)
    infinity = float("inf")
    one = tl.full((ROWS,), infinity, tl.float32)
    two = tl.full((ROWS,), infinity, tl.float32)
    three = tl.full((ROWS,), infinity, tl.float32)
    four = tl.full((ROWS,), infinity, tl.float32)
    for start in range(0, tl.where(first < length, length, 0), TILE):
        columns = start + tl.arange(0, TILE)
        values = products(gram, tokens, low, flags, rows, columns, pitch, width, STORED, SPLIT, STEP)
        values = squared(values, row_norms, tl.load(norms + columns))
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
