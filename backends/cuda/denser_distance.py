"""Distance to the nearest denser token: the fourth pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Centred, Plan, products, squared

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


def denser_distance(
    gram: Tensor,
    tokens: Centred,
    norms: Tensor,
    lengths: Tensor,
    density: Tensor,
    channels: int,
    strict: bool,
    plan: Plan,
) -> Tensor:
    """fp32 [F, pitch]: d^2 to the nearest denser token, the largest number where there is none, 0 where no token is.

    Of equally dense tokens the one with the lower index counts as denser, with `strict` none.
    """
    nearest = torch.empty_like(norms)
    blocks = plan.pitch // plan.rows
    arguments = (gram, *tokens, norms, lengths, density, nearest, plan.pitch, plan.width, 1 / channels, blocks)
    options = {"STRICT": strict, "SPLIT": tokens.split, **plan.passes, **plan.launch}
    _denser_distance[(len(norms) * blocks,)](*arguments, **options)
    return nearest


@triton.jit
def _denser_distance(
    gram, tokens, low, flags, norms, lengths, density, nearest, pitch, width, scale, blocks,
    STRICT: tl.constexpr, STORED: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a frame against all of it."""
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * ROWS
    length = tl.load(lengths + frame)
    rows = first + tl.arange(0, ROWS)
    gram += frame * pitch * pitch
    tokens += frame * pitch * width
    low += frame * pitch * width
    flags += frame * (width // STEP)
    norms += frame * pitch
    density += frame * pitch
    row_norms = tl.load(norms + rows)
    own = tl.load(density + rows)
    best = tl.full((ROWS,), LARGEST, tl.float32)
    for start in range(0, tl.where(first < length, length, 0), TILE):
        columns = start + tl.arange(0, TILE)
        values = products(gram, tokens, low, flags, rows, columns, pitch, width, STORED, SPLIT, STEP)
        values = squared(values, row_norms, tl.load(norms + columns))
        theirs = tl.load(density + columns)
        denser = theirs[None, :] > own[:, None]
        if not STRICT:
            denser = denser | ((theirs[None, :] == own[:, None]) & (columns[None, :] < rows[:, None]))
        values = tl.where(denser & (columns[None, :] < length), values, LARGEST)
        best = tl.minimum(best, tl.min(values, axis=1))
    best = tl.where(best < LARGEST, best * scale, LARGEST)
    tl.store(nearest + frame * pitch + rows, tl.where(rows < length, best, 0.0))
