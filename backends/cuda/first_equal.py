"""Which tokens of a frame are equal: the pass between the products and those that read them.

On a GPU a product has the same bits wherever its tokens stand, so equal tokens are alike by themselves. The rules of
the specification (docs/numerics.md) do not count on it, and this pass does not either.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import largest_error

from .tiles import Plan, stored


def checksums(tokens: Tensor) -> Tensor:
    """int32 [F, N]: the sum of the bits of each token of [F, N, C], wrapped around; the same in any order."""
    return tokens.view(torch.int32 if tokens.dtype == torch.float32 else torch.int16).sum(-1, dtype=torch.int32)


def first_equal(
    gram: Tensor, norms: Tensor, lengths: Tensor, sums: Tensor, channels: int, plan: Plan
) -> tuple[Tensor, Tensor]:
    """int32 [F, pitch], for each token the first of the tokens that are equal to it, and int32 [F], whether any has one
    before it. Equal tokens have one checksum and no distance above `largest_error`.

    gram, norms: as `gram` makes them, stored. sums: int32 [F, N], contiguous.
    """
    frames, blocks = len(lengths), plan.pitch // plan.rows
    first = torch.empty(norms.shape, dtype=torch.int32, device=norms.device)
    copies = torch.zeros(frames, dtype=torch.int32, device=norms.device)
    bound = largest_error(channels, torch.float32)
    arguments = (gram, norms, lengths, sums, first, copies, sums.shape[1], plan.pitch, bound, blocks)
    _first_equal[(frames * blocks,)](*arguments, ROWS=plan.rows, TILE=plan.tile, **plan.launch)
    return first, copies


@triton.jit
def _first_equal(
    gram, norms, lengths, sums, first, copies, count, pitch, bound, blocks, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a frame against all that stand before them. Products are looked at only in tiles
    with a pair of equal checksums."""
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    start_row = (tl.program_id(0) % blocks) * ROWS
    length = tl.load(lengths + frame)
    rows = start_row + tl.arange(0, ROWS)
    gram += frame * pitch * pitch
    norms += frame * pitch
    sums += frame * count
    row_sums = tl.load(sums + rows, mask=rows < length, other=0)
    found = rows
    for start in range(0, tl.where(start_row < length, start_row + ROWS, 0), TILE):
        columns = start + tl.arange(0, TILE)
        column_sums = tl.load(sums + columns, mask=columns < length, other=0)
        alike = (row_sums[:, None] == column_sums[None, :]) & (columns[None, :] < rows[:, None])
        alike = alike & (rows[:, None] < length)
        if tl.max(tl.max(alike.to(tl.int32), axis=1), axis=0) != 0:
            values = stored(gram, rows, columns, pitch)
            row_norms, column_norms = tl.load(norms + rows)[:, None], tl.load(norms + columns)[None, :]
            near = (row_norms - values) + (column_norms - values) <= bound * (row_norms + column_norms)
            found = tl.minimum(found, tl.min(tl.where(alike & near, columns[None, :], pitch), axis=1))
    tl.store(first + frame * pitch + rows, found)
    if tl.min(found - rows, axis=0) < 0:
        tl.atomic_max(copies + frame, 1)
