"""Which tokens of a frame are equal: the pass between the products and those that read them.

The rules are the specification's (docs/numerics.md). Copies of a token have products of the same bits at every place on
a GPU; the tokens of a flat area, which differ by the rounding of the layers before, have not.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import largest_error, probable_error

from .tiles import Centred, Plan, products, stored


def checksums(tokens: Tensor) -> Tensor:
    """int32 [F, N]: the sum of the bits of each token of [F, N, C], wrapped around; the same in any order."""
    return tokens.view(torch.int32 if tokens.dtype == torch.float32 else torch.int16).sum(-1, dtype=torch.int32)


def first_equal(
    gram: Tensor, tokens: Centred, norms: Tensor, lengths: Tensor, sums: Tensor, channels: int, plan: Plan
) -> tuple[Tensor, Tensor]:
    """int32 [F, pitch], for each token the first of its frame at distance zero, and int32 [F], whether any token has
    one before it. d^2 is zero below `probable_error`, and up to `largest_error` where the tokens have one checksum.

    gram, tokens, norms: as `gram` makes them. sums: int32 [F, N], contiguous.
    """
    frames, blocks = len(lengths), plan.pitch // plan.rows
    first = torch.empty(norms.shape, dtype=torch.int32, device=norms.device)
    copies = torch.zeros(frames, dtype=torch.int32, device=norms.device)
    bounds = probable_error(channels, torch.float32), largest_error(channels, torch.float32)
    arguments = (gram, *tokens, norms, lengths, sums, first, copies, sums.shape[1], plan.pitch, plan.width, *bounds)
    _first_equal[(frames * blocks,)](*arguments, blocks, **plan.options(tokens.high.dtype))
    return first, copies


@triton.jit
def _first_equal(
    gram, tokens, low, flags, norms, lengths, sums, first, copies, count, pitch, width, probable, largest, blocks,
    STORED: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a frame against all that stand before them."""
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    start_row = (tl.program_id(0) % blocks) * ROWS
    length = tl.load(lengths + frame)
    rows = start_row + tl.arange(0, ROWS)
    gram += frame * pitch * pitch
    tokens += frame * pitch * width
    low += frame * pitch * width
    flags += frame * (width // STEP)
    norms += frame * pitch
    sums += frame * count
    found = rows
    for start in range(0, tl.where(start_row < length, start_row + ROWS, 0), TILE):
        columns = start + tl.arange(0, TILE)
        if STORED:
            values = stored(gram, rows, columns, pitch)
        else:
            values = products(tokens, low, flags, rows, columns, width, SPLIT, STEP)
        row_norms, column_norms = tl.load(norms + rows)[:, None], tl.load(norms + columns)[None, :]
        values = (row_norms - values) + (column_norms - values)
        both = row_norms + column_norms
        row_sums = tl.load(sums + rows, mask=rows < length, other=0)
        alike = row_sums[:, None] == tl.load(sums + columns, mask=columns < length, other=0)[None, :]
        near = (values < probable * both) | (values == 0) | (alike & (values <= largest * both))
        near = near & (columns[None, :] < rows[:, None]) & (rows[:, None] < length)
        found = tl.minimum(found, tl.min(tl.where(near, columns[None, :], pitch), axis=1))
    tl.store(first + frame * pitch + rows, found)
    if tl.min(found - rows, axis=0) < 0:
        tl.atomic_max(copies + frame, 1)
