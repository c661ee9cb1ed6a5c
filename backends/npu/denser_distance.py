"""The distance to the nearest denser token: the fifth pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Tiling

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


def denser_distance(squared: Tensor, lengths: Tensor, density: Tensor, strict: bool, tiling: Tiling) -> Tensor:
    """fp32 [F, pitch]: d^2 to the nearest denser token; the largest number without one; 0 in padding.

    Of two equally dense tokens the one with the lower index counts as denser; with `strict`, neither does.
    """
    nearest = torch.empty_like(density)
    rows = tiling.rows["denser_distance"]
    blocks = tiling.pitch // rows
    arguments = (squared, lengths, density, nearest, len(lengths) * blocks, blocks, tiling.pitch)
    _denser_distance[(tiling.vectors,)](*arguments, STRICT=strict, ROWS=rows, TILE=tiling.tile)
    return nearest


@triton.jit
def _denser_distance(
    squared_ptr, lengths_ptr, density_ptr, nearest_ptr, tasks, blocks, pitch,
    STRICT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A task compares ROWS tokens with all of their frame."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        frame = task // blocks
        row = (task % blocks) * ROWS
        length = tl.load(lengths_ptr + frame)
        rows = row + tl.arange(0, ROWS)
        squared_of = squared_ptr + frame * pitch * pitch
        density_of = density_ptr + frame * pitch
        own = tl.load(density_of + rows)
        best = tl.full((ROWS,), LARGEST, tl.float32)
        for start in range(0, length, TILE):
            columns = start + tl.arange(0, TILE)
            values = tl.load(squared_of + rows[:, None] * pitch + columns[None, :])
            theirs = tl.load(density_of + columns)
            denser = theirs[None, :] > own[:, None]
            if not STRICT:
                equal = (theirs[None, :] == own[:, None]) & (columns[None, :] < rows[:, None])
                denser = denser | equal
            best = tl.minimum(best, tl.min(tl.where(denser, values, LARGEST), axis=1))
        tl.store(nearest_ptr + frame * pitch + rows, tl.where(rows < length, best, 0.0))
