"""What the clustering kernels share: how work is cut into tiles, and a tile of products of pairs of tokens.

Sizes follow from shape and dtype in plain Python; nothing is tuned by trial. Tokens are copied once into a workspace
whose rows and columns are padded with zeros to whole tiles, so that the kernels' inner loops have no masks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# A batch of frames that is worked on at a time holds at most so many products: 128 MiB in fp32. (32 frames of 768
# tokens are 72 MiB.) Frames of more than 5,792 tokens have none stored at all. Their padded tokens: 256 MiB in 16 bits,
# and as much for low parts.
STORED_AT_ONCE, TOKENS_AT_ONCE = 2**25, 2**27
SPLIT_TILE = 64  # along both sides of tiles of which a program may hold three: with low parts, see `with_low`


class Centred(NamedTuple):
    """A frame's tokens without their offset, high + low, as kernels take them.

    Attributes:
        high: [F, pitch, width] in the tokens' dtype, zero where a frame or its padding has none.
        low: the same of what `high` rounds away; written only where a flag is set.
        flags: int32 [F, steps], for which steps of channels `low` counts. fp32 tokens have no `low` and no flags, and
            here one tensor stands for the other.
    """

    high: Tensor
    low: Tensor
    flags: Tensor

    @property
    def split(self) -> bool:
        """Whether there are low parts at all."""
        return self.high.dtype != torch.float32


class Pairs(NamedTuple):
    """What `distances` reads of all pairs of a batch's tokens, in the order in which the kernels take it.

    Attributes:
        gram: products fp32 [F, pitch, pitch], empty where they are not stored.
        high, low, flags: the fields of Centred.
        norms: fp32 [F, pitch]. lengths: int32 [F], tokens of each frame.
        first: int32 [F, pitch], the first token at distance zero from each. copies: int32 [F], whether there is any.
    """

    gram: Tensor
    high: Tensor
    low: Tensor
    flags: Tensor
    norms: Tensor
    lengths: Tensor
    first: Tensor
    copies: Tensor


@dataclass(frozen=True)
class Plan:
    """How [F, N, C] tokens are cut.

    Attributes:
        tile: tokens along both sides of a tile of the product.
        rows: tokens that a program of the later passes serves.
        step: channels of one step along a product.
        warps, stages: of the programs that make products.
        pitch, width: N and C, padded to whole tiles and steps.
        frames: how many of them are worked on at a time.
        stored: whether their products stay in memory between the passes; if not, each pass makes them again.
    """

    tile: int
    rows: int
    step: int
    warps: int
    stages: int
    pitch: int
    width: int
    frames: int
    stored: bool

    def options(self, dtype: torch.dtype) -> dict[str, int | bool]:
        """The compile-time and launch options of a pass over pairs of tokens of that dtype."""
        return {"SPLIT": dtype != torch.float32, **self.passes, **self.launch}

    @property
    def passes(self) -> dict[str, int | bool]:
        """The compile-time arguments of a pass over pairs of tokens."""
        return {"STORED": self.stored, "ROWS": self.rows, "TILE": self.tile, "STEP": self.step}

    @property
    def launch(self) -> dict[str, int]:
        """The launch options of a pass: a read of memory, or again a product."""
        return (
            {"num_warps": 4, "num_stages": 3} if self.stored else {"num_warps": self.warps, "num_stages": self.stages}
        )


def plan(frames: int, count: int, channels: int, dtype: torch.dtype, stored_at_once: int = STORED_AT_ONCE) -> Plan:
    """The Plan for [frames, count, channels] tokens.

    16 bits: 128 x 128 x 64, a warp group of tensor-core products, two programs to a multiprocessor, so that one stores
    while the other multiplies; 64 x 64 x 64 where products are not stored. fp32, in ordinary arithmetic (TF32 is not
    exact): 64 x 64 x 32. Fewer tokens than a tile take a smaller one.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    tile = min(128 if half else 64, max(16, triton.next_power_of_2(count)))
    step = min(64 if half else 32, max(16, triton.next_power_of_2(channels)))
    pitch, width = triton.cdiv(count, tile) * tile, triton.cdiv(channels, step) * step
    stored = pitch**2 <= stored_at_once
    together = min(TOKENS_AT_ONCE // (pitch * width), stored_at_once // pitch**2 if stored else frames)
    if not stored:
        tile = min(SPLIT_TILE, tile)
    rows = min(32, tile) if stored else tile
    warps = 8 if half and not stored else 4  # three tiles of sums at a time fit into the registers of eight
    return Plan(tile, rows, step, warps, 3, pitch, width, max(1, min(frames, together)), stored)


def shared_bytes(plan: Plan, dtype: torch.dtype) -> int:
    """Shared memory that the largest program asks for: the stages of two operands, and a tile that is turned over."""
    operands = plan.stages * 2 * plan.tile * plan.step * torch.finfo(dtype).bits // 8
    read = 4 * plan.stages * plan.rows * plan.tile if plan.stored else 0
    return max(operands, 4 * plan.tile**2, read)


@triton.jit
def distances(
    gram, tokens, low, flags, norms, first, copies, rows, columns, pitch, width, bound,
    STORED: tl.constexpr, SPLIT: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """d^2 [rows, columns] in one frame, not per channel: those of the first tokens at distance zero from these.

    All pointers point to the frame; copies is 0 where no two of its tokens are equal. d^2 is zero below
    `bound` * (|x_i|^2 + |x_j|^2).
    """
    rows_at, columns_at = tl.load(first + rows), tl.load(first + columns)
    if STORED:
        if copies != 0:
            values = stored(gram, rows_at, columns_at, pitch)
        else:  # neighbours in memory, as the compiler can see
            values = stored(gram, rows, columns, pitch)
    else:
        values = products(tokens, low, flags, rows_at, columns_at, width, SPLIT, STEP)
    row_norms, column_norms = tl.load(norms + rows_at)[:, None], tl.load(norms + columns_at)[None, :]
    values = (row_norms - values) + (column_norms - values)
    return tl.where(values < bound * (row_norms + column_norms), 0.0, tl.maximum(values, 0.0))


@triton.jit
def stored(gram, rows, columns, pitch):
    """fp32 [rows, columns] of x_i x_j in one frame. They are symmetric to the last bit, so they are read along the
    rows, which are neighbours in memory whatever the columns are."""
    return tl.load(gram + columns[None, :] * pitch + rows[:, None])


@triton.jit
def products(tokens, low, flags, rows, columns, width, SPLIT: tl.constexpr, STEP: tl.constexpr):
    """fp32 [rows, columns] of x_i x_j, made. tokens, low and flags point to the frame."""
    channel = tl.arange(0, STEP)
    left = tokens + rows[:, None] * width + channel[None, :]
    right = tokens + columns[None, :] * width + channel[:, None]
    values = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, width, STEP):
        values = tl.dot(tl.load(left + start), tl.load(right + start), values, input_precision="ieee")
    if SPLIT and any_flag(flags, width // STEP):
        values = with_low(values, tokens, low, flags, rows, columns, width, STEP)
    return values


@triton.jit
def any_flag(flags, count):
    """Whether one of `count` flags is set; a scalar, so that all threads branch alike."""
    place = tl.arange(0, 128)
    found = tl.zeros((128,), tl.int32)
    for start in range(0, count, 128):
        found = tl.maximum(found, tl.load(flags + start + place, mask=start + place < count, other=0))
    return tl.max(found, axis=0) != 0


@triton.jit
def with_low(values, tokens, low, flags, rows, columns, width, STEP: tl.constexpr):
    """values, which have high x high, with the three products more of the flagged steps.

    high x low and low x high are summed apart: the sum of two numbers has no order, so (i, j) gets the bits of (j, i),
    and copies of a token the same ones wherever they stand.
    """
    channel = tl.arange(0, STEP)
    left = rows[:, None] * width + channel[None, :]
    right = columns[None, :] * width + channel[:, None]
    one = tl.zeros_like(values)
    two = tl.zeros_like(values)
    for block in range(width // STEP):
        if tl.load(flags + block) != 0:
            start = block * STEP
            left_low, right_low = tl.load(low + left + start), tl.load(low + right + start)
            one = tl.dot(tl.load(tokens + left + start), right_low, one)
            two = tl.dot(left_low, tl.load(tokens + right + start), two)
            values = tl.dot(left_low, right_low, values)
    return values + (one + two)
