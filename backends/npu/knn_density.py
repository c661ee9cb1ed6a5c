"""The kNN density of every token: the fourth pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Tiling

FAR = tl.constexpr(2.0**30)  # above any column of a tile


def knn_density(squared: Tensor, lengths: Tensor, num_neighbors: Tensor, tiling: Tiling) -> Tensor:
    """Log density, fp32 [F, pitch]: negative mean d^2 of a token to its k nearest, including itself; 0 in padding.

    num_neighbors is int32 [F], from 1 to 5.
    """
    density = torch.empty(squared.shape[:2], dtype=torch.float32, device=squared.device)
    rows = tiling.rows["knn_density"]
    blocks = tiling.pitch // rows
    arguments = (squared, lengths, num_neighbors, density, len(lengths) * blocks, blocks, tiling.pitch)
    _knn_density[(tiling.vectors,)](*arguments, ROWS=rows, TILE=tiling.tile)
    return density


@triton.jit
def _knn_density(
    squared_ptr, lengths_ptr, num_neighbors_ptr, density_ptr, tasks, blocks, pitch,
    ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A task compares ROWS tokens with all of their frame; the four smallest d^2 stay in the core's buffer."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        frame = task // blocks
        row = (task % blocks) * ROWS
        length = tl.load(lengths_ptr + frame)
        rows = row + tl.arange(0, ROWS)
        squared_of = squared_ptr + frame * pitch * pitch
        one = tl.full((ROWS,), float("inf"), tl.float32)
        two = tl.full((ROWS,), float("inf"), tl.float32)
        three = tl.full((ROWS,), float("inf"), tl.float32)
        four = tl.full((ROWS,), float("inf"), tl.float32)
        place = tl.arange(0, TILE).to(tl.float32)
        for start in range(0, length, TILE):
            columns = start + tl.arange(0, TILE)
            values = tl.load(squared_of + rows[:, None] * pitch + columns[None, :])
            values = tl.where(columns[None, :] == rows[:, None], float("inf"), values)
            for _ in tl.static_range(4):
                near = tl.min(values, axis=1)
                # A second minimum finds the first of equal values; tl.min with indices would be a scalar loop.
                taken = tl.min(tl.where(values == near[:, None], place[None, :], FAR), axis=1)
                values = tl.where(place[None, :] == taken[:, None], float("inf"), values)
                four = tl.minimum(four, tl.maximum(three, near))
                three = tl.minimum(three, tl.maximum(two, near))
                two = tl.minimum(two, tl.maximum(one, near))
                one = tl.minimum(one, near)
        k = tl.load(num_neighbors_ptr + frame)
        total = tl.zeros((ROWS,), tl.float32)
        if k > 1:
            total += one
        if k > 2:
            total += two
        if k > 3:
            total += three
        if k > 4:
            total += four
        total = total / k.to(tl.float32)
        tl.store(density_ptr + frame * pitch + rows, tl.where(rows < length, -total, 0.0))
