"""Which tokens of a frame are equal, and distances in which equal tokens have equal rows: the third pass.

The rules are those of the specification (docs/numerics.md).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import largest_error

from .gram import corner
from .tiles import Tiling

FAR = tl.constexpr(2.0**30)  # above any token's index


def share_rows(
    squared: Tensor, norms: Tensor, lengths: Tensor, sums: Tensor, flat: Tensor, channels: int, tiling: Tiling
) -> None:
    """Gives every token the row and the column of the first token of its frame at distance zero, in place.

    Afterwards d^2[i, j] is the former d^2[first[i], first[j]]. Rows are copied, the matrix is transposed, and rows are
    copied again, because a core accesses whole rows fast and single numbers slowly. Frames without equal tokens are
    left unchanged.

    Args:
        squared, norms: the results of `squared_distances`. lengths: int32 [F].
        sums: int32 [F, pitch], each token's bits as integers, summed over channels with wrap-around.
        flat: bool [F], frames whose tokens are all equal but for rounding; token 0 replaces all of them.
    """
    first = first_equal(squared, norms, lengths, sums, channels, tiling).masked_fill_(flat[:, None], 0)
    copies = (first != torch.arange(tiling.pitch, device=first.device, dtype=torch.int32)).any(1).to(torch.int32)
    frames, strips, tiles = len(lengths), tiling.pitch // tiling.length, tiling.pitch // tiling.turned
    per_frame = tiles * (tiles + 1) // 2
    rows = (squared, first, copies, lengths, frames * strips, strips, tiling.pitch)
    _copy_rows[(tiling.vectors,)](*rows, LENGTH=tiling.length)
    _turn[(tiling.vectors,)](
        squared, copies, lengths, frames * per_frame, per_frame, tiles, tiling.pitch, TILE=tiling.turned
    )
    _copy_rows[(tiling.vectors,)](*rows, LENGTH=tiling.length)


def first_equal(squared: Tensor, norms: Tensor, lengths: Tensor, sums: Tensor, channels: int, tiling: Tiling) -> Tensor:
    """int32 [F, pitch], for each token the first one of its frame at distance zero. Arguments as in `share_rows`."""
    first = torch.empty(norms.shape, dtype=torch.int32, device=norms.device)
    rows = tiling.rows["first_equal"]
    blocks, bound = tiling.pitch // rows, largest_error(channels, torch.float32)
    arguments = (squared, norms, lengths, sums, first, len(lengths) * blocks, blocks, tiling.pitch, bound)
    _first_equal[(tiling.vectors,)](*arguments, ROWS=rows, TILE=tiling.tile)
    return first


@triton.jit
def _first_equal(
    squared_ptr, norms_ptr, lengths_ptr, sums_ptr, first_ptr, tasks, blocks, pitch, bound,
    ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A task compares ROWS tokens with all earlier ones of their frame. fp32 holds their indices exactly."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        frame = task // blocks
        row = (task % blocks) * ROWS
        length = tl.load(lengths_ptr + frame)
        rows = row + tl.arange(0, ROWS)
        squared_of = squared_ptr + frame * pitch * pitch
        norms_of = norms_ptr + frame * pitch
        sums_of = sums_ptr + frame * pitch
        found = tl.full((ROWS,), FAR, tl.float32)
        norm = tl.load(norms_of + rows)
        checksum = tl.load(sums_of + rows)
        for start in range(0, tl.minimum(row + ROWS, length), TILE):
            columns = start + tl.arange(0, TILE)
            values = tl.load(squared_of + rows[:, None] * pitch + columns[None, :])
            limit = (norm[:, None] + tl.load(norms_of + columns)[None, :]) * bound
            alike = checksum[:, None] == tl.load(sums_of + columns)[None, :]
            equal = (values == 0.0) | (alike & (values <= limit))
            equal = equal & (columns[None, :] < rows[:, None])
            place = tl.where(equal, columns.to(tl.float32)[None, :], FAR)
            found = tl.minimum(found, tl.min(place, axis=1))
        found = tl.where(rows < length, tl.minimum(found, rows.to(tl.float32)), rows.to(tl.float32))
        tl.store(first_ptr + frame * pitch + rows, found.to(tl.int32))


@triton.jit
def _copy_rows(squared_ptr, first_ptr, copies_ptr, lengths_ptr, tasks, strips, pitch, LENGTH: tl.constexpr):
    """A task overwrites every row of a frame, in LENGTH columns, with the row of its first equal token.

    It proceeds from the last row to the first: first[i] <= i, so every row is read before it is written.
    """
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        frame = task // strips
        columns = (task % strips) * LENGTH + tl.arange(0, LENGTH)
        if tl.load(copies_ptr + frame) != 0:
            squared_of = squared_ptr + frame * pitch * pitch + columns
            length = tl.load(lengths_ptr + frame)
            for back in range(length):
                row = length - 1 - back
                first = tl.load(first_ptr + frame * pitch + row)
                if first != row:
                    tl.store(squared_of + row * pitch, tl.load(squared_of + first * pitch))


@triton.jit
def _turn(squared_ptr, copies_ptr, lengths_ptr, tasks, per_frame, tiles, pitch, TILE: tl.constexpr):
    """A task transposes a tile on or above the diagonal and its mirror image, and exchanges them."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        frame = task // per_frame
        row, column = corner(task % per_frame, tiles)
        if tl.load(copies_ptr + frame) != 0 and column * TILE < tl.load(lengths_ptr + frame):
            place = tl.arange(0, TILE)
            squared_of = squared_ptr + frame * pitch * pitch
            above = squared_of + (row * TILE + place)[:, None] * pitch + (column * TILE + place)[None, :]
            below = squared_of + (column * TILE + place)[:, None] * pitch + (row * TILE + place)[None, :]
            one = tl.load(above)
            other = tl.load(below)
            tl.store(above, tl.trans(other))
            tl.store(below, tl.trans(one))
