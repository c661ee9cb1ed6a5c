"""Squared distances of all pairs of tokens of a frame: the second pass of the clustering.

The cube cores multiply in fp32, as the specification does, so there are no 16-bit parts and no separate error bound.
They compute the tiles on and above the diagonal; the vector cores turn products into distances and mirror them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import probable_error

from .tiles import STEP, Tiling


def squared_distances(tokens: Tensor, lengths: Tensor, channels: int, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """d^2, fp32 [F, pitch, pitch], and squared norms, fp32 [F, pitch]: divided by `channels`, infinite in padding.

    tokens: the result of `centred`. d^2 is zero below the probable error of rounding, and symmetric to the last bit.
    """
    frames, tiles = len(lengths), tiling.pitch // tiling.tile
    squared = torch.empty(frames, tiling.pitch, tiling.pitch, dtype=torch.float32, device=tokens.device)
    per_frame = tiles * (tiles + 1) // 2
    _products[(tiling.cubes,)](
        tokens, lengths, squared, frames * per_frame, per_frame, tiles, tiling.pitch, tiling.width,
        TILE=tiling.tile, STEP=STEP,
    )  # fmt: skip
    norms = (squared.diagonal(dim1=1, dim2=2) / channels).contiguous()
    norms.masked_fill_(torch.arange(tiling.pitch, device=norms.device) >= lengths[:, None], torch.inf)
    tiles = tiling.pitch // tiling.square
    per_frame = tiles * (tiles + 1) // 2
    _distances[(tiling.vectors,)](
        squared, norms, lengths, frames * per_frame, per_frame, tiles, tiling.pitch, -2 / channels,
        probable_error(channels, torch.float32), SQUARE=tiling.square, TILE=tiling.tile,
    )  # fmt: skip
    return squared, norms


@triton.jit
def corner(place, tiles):
    """(row, column) of the `place`-th tile on or above the diagonal of tiles x tiles.

    Row p is counted together with the row that completes it to a constant number of tiles: row tiles - 1 - p if `tiles`
    is even, row tiles - p if it is odd.
    """
    odd = tiles % 2
    wide = tiles + 1 - odd
    p = place // wide
    q = place % wide
    row = p
    column = p + q
    if q >= tiles - p:
        row = tiles - 1 - p + odd
        column = row + q - (tiles - p)
    return row, column


@triton.jit
def _products(
    x_ptr, lengths_ptr, out_ptr, tasks, per_frame, tiles, pitch, width,
    TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A task computes one tile of products on or above the diagonal. Tiles with only padding are not written."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        frame = task // per_frame
        row, column = corner(task % per_frame, tiles)
        if column * TILE < tl.load(lengths_ptr + frame):
            source = x_ptr + frame * pitch * width
            rows = row * TILE + tl.arange(0, TILE)
            columns = column * TILE + tl.arange(0, TILE)
            channel = tl.arange(0, STEP)
            values = tl.zeros((TILE, TILE), tl.float32)
            for start in range(0, width, STEP):
                left = tl.load(source + rows[:, None] * width + (start + channel)[None, :])
                # Loaded along its rows and transposed, because cube cores take the operand in this form.
                right = tl.load(source + columns[:, None] * width + (start + channel)[None, :])
                values = tl.dot(left, tl.trans(right), values, input_precision="ieee")
            tl.store(out_ptr + frame * pitch * pitch + rows[:, None] * pitch + columns[None, :], values)


@triton.jit
def _distances(
    values_ptr, norms_ptr, lengths_ptr, tasks, per_frame, tiles, pitch, scale, bound,
    SQUARE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A task turns a square of products into distances, and stores them there and, transposed, in the mirror image.

    In tiles that contain a token, distances to padding become infinite; later passes read no other tiles.
    """
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        frame = task // per_frame
        row, column = corner(task % per_frame, tiles)
        if column * SQUARE // TILE * TILE < tl.load(lengths_ptr + frame):
            place = tl.arange(0, SQUARE)
            rows = row * SQUARE + place
            columns = column * SQUARE + place
            values_of = values_ptr + frame * pitch * pitch
            norms_of = norms_ptr + frame * pitch
            values = tl.load(values_of + rows[:, None] * pitch + columns[None, :])
            both = tl.load(norms_of + rows)[:, None] + tl.load(norms_of + columns)[None, :]
            values = values * scale + both
            values = tl.where(values < both * bound, 0.0, values)
            turned = tl.trans(values)
            if row == column:
                turned = tl.where(place[:, None] <= place[None, :], values, turned)
                tl.store(values_of + rows[:, None] * pitch + columns[None, :], turned)
            else:
                tl.store(values_of + rows[:, None] * pitch + columns[None, :], values)
                tl.store(values_of + columns[:, None] * pitch + rows[None, :], turned)
