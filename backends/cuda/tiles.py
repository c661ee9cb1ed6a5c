"""Shared by the clustering kernels: how work is cut into tiles, and how a tile of products of token pairs is computed.

Block sizes follow from shape and dtype in plain Python; there is no autotuning. Tokens are copied once into a workspace
that is padded with zeros to whole blocks, so that the inner loops of the kernels need no masks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Limits for the frames that are processed at the same time. STORED_AT_ONCE: their products, 128 MiB in fp32 (72 MiB for
# 32 frames of 768 tokens); a frame of more than 5,792 tokens exceeds it, so its products are not stored.
# TOKENS_AT_ONCE: numbers in their padded tokens, 256 MiB in 16 bits; low parts take as much again.
STORED_AT_ONCE, TOKENS_AT_ONCE = 2**25, 2**27
SPLIT_TILE = 64  # tokens along the sides of a tile in programs with three accumulator tiles, such as `with_low`


class Centred(NamedTuple):
    """The centred tokens of all frames, as the sum high + low; the fields are in the order of the kernels' arguments.

    Attributes:
        high: [F, pitch, width] in the tokens' dtype, zero in padding.
        low: what was lost in rounding to `high`, in the same layout; written only where a flag is set.
        flags: int32 [F, width / BLOCK_C], 1 for blocks of channels that need `low`. fp32 tokens have neither low parts
            nor flags: `low` is then `high`, and `flags` are the lengths; the kernels read neither.
    """

    high: Tensor
    low: Tensor
    flags: Tensor

    @property
    def split(self) -> bool:
        """Whether the tokens can have low parts: they are not fp32."""
        return self.high.dtype != torch.float32


class Pairs(NamedTuple):
    """The inputs of `distances`, in the order of the kernels' arguments.

    Attributes:
        gram: fp32 [F, pitch, pitch], the products of all pairs of tokens; empty if they are not stored.
        high, low, flags: the fields of Centred.
        norms: fp32 [F, pitch], squared norms. lengths: int32 [F], the number of tokens per frame.
        first: int32 [F, pitch], for each token the first one at distance zero.
        copies: int32 [F], 1 where any token of the frame equals an earlier one, else 0.
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
class Tiling:
    """How [F, N, C] tokens are cut into blocks.

    Attributes:
        block_m: tokens that one program of the later passes compares with the others (BLOCK_M).
        block_n: tokens along both sides of a tile of products (BLOCK_N).
        block_c: channels that a product accumulates at a time (BLOCK_C).
        warps, stages: launch options of the programs that compute products.
        pitch, width: N and C, padded to whole blocks; the row strides of the products and of the tokens.
        frames: number of frames that are processed at the same time.
        stored: whether products stay in memory between the passes; if not, each pass recomputes them.
    """

    block_m: int
    block_n: int
    block_c: int
    warps: int
    stages: int
    pitch: int
    width: int
    frames: int
    stored: bool

    def options(self, dtype: torch.dtype) -> dict[str, int | bool]:
        """The constexpr arguments and the launch options of a pass over pairs of tokens of this dtype."""
        return {"SPLIT": dtype != torch.float32, **self.passes, **self.launch}

    @property
    def passes(self) -> dict[str, int | bool]:
        """The constexpr arguments of a pass over pairs of tokens of any dtype."""
        return {"STORED": self.stored, "BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_C": self.block_c}

    @property
    def launch(self) -> dict[str, int]:
        """The launch options of a pass, which reads stored products or recomputes them."""
        return (
            {"num_warps": 4, "num_stages": 3} if self.stored else {"num_warps": self.warps, "num_stages": self.stages}
        )


def plan(frames: int, count: int, channels: int, dtype: torch.dtype, stored_at_once: int = STORED_AT_ONCE) -> Tiling:
    """The Tiling of [frames, count, channels] tokens.

    For 16 bits the blocks are 128 x 128 x 64: one warp group multiplies on tensor cores, and two programs share a
    multiprocessor, so that one stores while the other multiplies. If products are not stored, they are 64 x 64 x 64.
    For fp32 they are 64 x 64 x 32, in ordinary arithmetic because TF32 is not exact. Small inputs get smaller blocks.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    block_n = min(128 if half else 64, max(16, triton.next_power_of_2(count)))
    block_c = min(64 if half else 32, max(16, triton.next_power_of_2(channels)))
    pitch, width = triton.cdiv(count, block_n) * block_n, triton.cdiv(channels, block_c) * block_c
    stored = pitch**2 <= stored_at_once
    together = min(TOKENS_AT_ONCE // (pitch * width), stored_at_once // pitch**2 if stored else frames)
    if not stored:
        block_n = min(SPLIT_TILE, block_n)
    block_m = min(32, block_n) if stored else block_n
    warps = 8 if half and not stored else 4  # eight warps have the registers for three accumulator tiles
    return Tiling(block_m, block_n, block_c, warps, 3, pitch, width, max(1, min(frames, together)), stored)


def shared_bytes(tiling: Tiling, dtype: torch.dtype) -> int:
    """Bytes of shared memory that the largest program needs: the stages of two operands, or a tile to transpose."""
    operands = tiling.stages * 2 * tiling.block_n * tiling.block_c * torch.finfo(dtype).bits // 8
    read = 4 * tiling.stages * tiling.block_m * tiling.block_n if tiling.stored else 0
    return max(operands, 4 * tiling.block_n**2, read)


@triton.jit
def distances(
    gram_ptr, high_ptr, low_ptr, flags_ptr, norms_ptr, first_ptr, has_copies, offs_m, offs_n, pitch, width, bound,
    STORED: tl.constexpr, SPLIT: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """fp32 [BLOCK_M, BLOCK_N], d^2 between tokens offs_m and offs_n of one frame, summed over channels.

    Each token is replaced by the first one at distance zero. d^2 is zero below `bound` * (|x_i|^2 + |x_j|^2).
    All pointers point to the frame; has_copies is 0 if no two of its tokens are equal.
    """
    first_m, first_n = tl.load(first_ptr + offs_m), tl.load(first_ptr + offs_n)
    if STORED:
        if has_copies != 0:
            d2 = stored(gram_ptr, first_m, first_n, pitch)
        else:  # here the compiler sees that the loads are contiguous
            d2 = stored(gram_ptr, offs_m, offs_n, pitch)
    else:
        d2 = products(high_ptr, low_ptr, flags_ptr, first_m, first_n, width, SPLIT, BLOCK_C)
    norms_m, norms_n = tl.load(norms_ptr + first_m)[:, None], tl.load(norms_ptr + first_n)[None, :]
    d2 = (norms_m - d2) + (norms_n - d2)
    return tl.where(d2 < bound * (norms_m + norms_n), 0.0, tl.maximum(d2, 0.0))


@triton.jit
def stored(gram_ptr, offs_m, offs_n, pitch):
    """fp32 [BLOCK_M, BLOCK_N], the stored products x_i x_j. gram_ptr points to the frame.

    They are symmetric to the last bit, so they are read along offs_m, which is contiguous even if offs_n is not.
    """
    return tl.load(gram_ptr + offs_n[None, :] * pitch + offs_m[:, None])


@triton.jit
def products(high_ptr, low_ptr, flags_ptr, offs_m, offs_n, width, SPLIT: tl.constexpr, BLOCK_C: tl.constexpr):
    """fp32 [BLOCK_M, BLOCK_N], the products x_i x_j, computed here. All pointers point to the frame."""
    offs_c = tl.arange(0, BLOCK_C)
    left_ptrs = high_ptr + offs_m[:, None] * width + offs_c[None, :]
    right_ptrs = high_ptr + offs_n[None, :] * width + offs_c[:, None]
    values = tl.zeros((offs_m.shape[0], offs_n.shape[0]), tl.float32)
    for start_c in range(0, width, BLOCK_C):
        values = tl.dot(tl.load(left_ptrs + start_c), tl.load(right_ptrs + start_c), values, input_precision="ieee")
    if SPLIT and any_flag(flags_ptr, width // BLOCK_C):
        values = with_low(values, high_ptr, low_ptr, flags_ptr, offs_m, offs_n, width, BLOCK_C)
    return values


@triton.jit
def any_flag(flags_ptr, num_flags):
    """Whether any of num_flags flags is set. It is a scalar, so that all threads take the same branch."""
    offs = tl.arange(0, 128)
    found = tl.zeros((128,), tl.int32)
    for start in range(0, num_flags, 128):
        found = tl.maximum(found, tl.load(flags_ptr + start + offs, mask=start + offs < num_flags, other=0))
    return tl.max(found, axis=0) != 0


@triton.jit
def with_low(values, high_ptr, low_ptr, flags_ptr, offs_m, offs_n, width, BLOCK_C: tl.constexpr):
    """`values`, the products high x high, plus the other three products of the flagged blocks of channels.

    high x low and low x high have their own accumulators, whose sum is added at the end. a + b = b + a to the last bit,
    so (i, j) gets the same bits as (j, i), and so do copies of a token at any position.
    """
    offs_c = tl.arange(0, BLOCK_C)
    left_offs = offs_m[:, None] * width + offs_c[None, :]
    right_offs = offs_n[None, :] * width + offs_c[:, None]
    high_low = tl.zeros_like(values)
    low_high = tl.zeros_like(values)
    for block in range(width // BLOCK_C):
        if tl.load(flags_ptr + block) != 0:
            start_c = block * BLOCK_C
            left_low, right_low = tl.load(low_ptr + left_offs + start_c), tl.load(low_ptr + right_offs + start_c)
            high_low = tl.dot(tl.load(high_ptr + left_offs + start_c), right_low, high_low)
            low_high = tl.dot(left_low, tl.load(high_ptr + right_offs + start_c), low_high)
            values = tl.dot(left_low, right_low, values)
    return values + (high_low + low_high)
