"""Distance to the nearest denser token: the fourth pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import probable_error

from .tiles import Pairs, Plan, distances

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


def denser_distance(pairs: Pairs, density: Tensor, channels: int, strict: bool, plan: Plan) -> Tensor:
    """fp32 [F, pitch]: d^2 to the nearest denser token, the largest number where there is none, 0 where no token is.

    Of equally dense tokens the one with the lower index counts as denser, with `strict` none.
    """
    nearest = torch.empty_like(density)
    blocks, bound = plan.pitch // plan.rows, probable_error(channels, torch.float32)
    arguments = (*pairs, density, nearest, plan.pitch, plan.width, bound, 1 / channels, blocks)
    _denser_distance[(len(density) * blocks,)](*arguments, STRICT=strict, **plan.options(pairs.high.dtype))
    return nearest


@triton.jit
def _denser_distance(
    gram, tokens, low, flags, norms, lengths, first, copies, density, nearest, pitch, width, bound, scale,
    blocks,
    STRICT: tl.constexpr, STORED: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a frame against all of it."""
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
    density += frame * pitch
    own = tl.load(density + rows)
    best = tl.full((ROWS,), LARGEST, tl.float32)
    for start in range(0, tl.where(start_row < length, length, 0), TILE):
        columns = start + tl.arange(0, TILE)
        values = distances(
            gram, tokens, low, flags, norms, first, copy, rows, columns, pitch, width, bound, STORED, SPLIT, STEP
        )
        theirs = tl.load(density + columns)
        denser = theirs[None, :] > own[:, None]
        if not STRICT:
            denser = denser | ((theirs[None, :] == own[:, None]) & (columns[None, :] < rows[:, None]))
        values = tl.where(denser & (columns[None, :] < length), values, LARGEST)
        best = tl.minimum(best, tl.min(values, axis=1))
    best = tl.where(best < LARGEST, best * scale, LARGEST)
    tl.store(nearest + frame * pitch + rows, tl.where(rows < length, best, 0.0))
