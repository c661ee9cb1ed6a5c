"""Products of all pairs of tokens of a frame, centred where this matters: the first two passes of the clustering.

The products are fp32-exact in one of two ways. fp32 tokens are centred as in the specification and multiplied in
ordinary fp32 arithmetic. 16-bit tokens are multiplied on tensor cores, where the product of two numbers is exact and
sums are fp32. What costs digits there is a channel's offset c, which is its mean rounded to 16 bits:

* If x - c is exact in 16 bits for all tokens of the frame, the channel is shifted, and nothing is lost. By Sterbenz's
  lemma this holds if x/2 <= c <= 2x.
* If |c| is at most FAR mean deviations (each deviation is capped at |c|, so that a few outliers do not make a channel
  look wide), the channel stays as it is. The mean square of x is then at most 1 + FAR^2 = 17 times that of x - c, so
  the rounding of sums is 17 * 2^-24 = 1e-6 of the spread, less than that of bf16 under the next rule.
* Otherwise the channel is a massive one with outliers, and x - c is split into two 16-bit parts, high + low. The error
  of their sum is at most 2^-17 in bf16, and at most 2^-23 in fp16, whose numbers are multiples of 2^-24. The channel's
  block is flagged and takes four products instead of one. Without low x low, d^2 would lack |low_i - low_j|^2, which
  is the whole distance between two outliers with the same high part.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import SPLIT_TILE, Centred, Tiling, any_flag, products, with_low

FAR = tl.constexpr(4.0)  # in mean deviations


def centred(tokens: Tensor, lengths: Tensor, tiling: Tiling) -> Centred:
    """Tokens [F, N, C] without the offsets of their channels, by the rules above. lengths: int32 [F]."""
    frames, _, channels = tokens.shape
    high = torch.empty(frames, tiling.pitch, tiling.width, dtype=tokens.dtype, device=tokens.device)
    num_blocks, low, flags = tiling.width // tiling.block_c, high, lengths
    split = tokens.dtype != torch.float32
    if split:
        low, flags = torch.empty_like(high), torch.empty(frames, num_blocks, dtype=torch.int32, device=tokens.device)
    arguments = (tokens, lengths, high, low, flags, channels, *tokens.stride(), tiling.pitch, tiling.width)
    _centre[(frames * num_blocks,)](*arguments, num_blocks, SPLIT=split, BLOCK_N=64, BLOCK_C=tiling.block_c)
    return Centred(high, low, flags)


def gram(tokens: Centred, lengths: Tensor, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """Products of all pairs of centred tokens, fp32 [F, pitch, pitch], and squared norms, fp32 [F, pitch].

    Tiles on and above the diagonal are computed, and stored on both sides of it. Without `tiling.stored`, only those on
    the diagonal are computed, and the first result is empty. Tiles that contain only padding are not written.
    """
    frames, num_blocks, device = len(lengths), tiling.pitch // tiling.block_n, lengths.device
    shape = (frames, tiling.pitch, tiling.pitch) if tiling.stored else (0,)
    out = torch.empty(shape, dtype=torch.float32, device=device)
    norms = torch.empty(frames, tiling.pitch, dtype=torch.float32, device=device)
    options = {"STORED": tiling.stored, "BLOCK_N": tiling.block_n, "BLOCK_C": tiling.block_c}
    grid = (frames * (num_blocks**2 if tiling.stored else num_blocks),)
    arguments = (*tokens, lengths, out, norms, tiling.pitch, tiling.width, num_blocks)
    later = tokens.split and tiling.stored
    split = tokens.split and not later
    _gram[grid](*arguments, SPLIT=split, LATER=False, **options, num_warps=tiling.warps, num_stages=tiling.stages)
    if later:
        # A separate launch with smaller tiles, because registers have to hold three accumulator tiles.
        options["BLOCK_N"] = min(SPLIT_TILE, tiling.block_n)
        num_blocks = tiling.pitch // options["BLOCK_N"]
        grid, arguments = (frames * num_blocks**2,), (*arguments[:-1], num_blocks)
        _gram[grid](*arguments, SPLIT=True, LATER=True, **options, num_warps=4, num_stages=tiling.stages)
    return out, norms


@triton.jit
def _centre(
    x_ptr, lengths_ptr, high_ptr, low_ptr, flags_ptr, num_channels, stride_xb, stride_xn, stride_xc,
    pitch, width, num_blocks,
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program centres BLOCK_C channels of all tokens of one frame."""
    pid = tl.program_id(0)
    frame = (pid // num_blocks).to(tl.int64)
    offs_c = (pid % num_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    length = tl.load(lengths_ptr + frame)
    offs = tl.arange(0, BLOCK_N)
    mask_c = offs_c[None, :] < num_channels
    x_ptr += frame * stride_xb + offs_c[None, :].to(tl.int64) * stride_xc
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start_n in range(0, length, BLOCK_N):
        offs_n = (start_n + offs)[:, None].to(tl.int64)
        mask = (offs_n < length) & mask_c
        total += tl.sum(tl.load(x_ptr + offs_n * stride_xn, mask=mask, other=0.0).to(tl.float32), axis=0)
    offset = total / length.to(tl.float32)
    flag = 0
    if SPLIT:
        offset, flag = _shift(x_ptr, offset, length, mask_c, stride_xn, high_ptr.dtype.element_ty, BLOCK_N, BLOCK_C)
        tl.store(flags_ptr + pid, flag)
    place = frame * pitch * width + offs_c[None, :]
    for start_n in range(0, pitch, BLOCK_N):
        offs_n = (start_n + offs)[:, None].to(tl.int64)
        mask = (offs_n < length) & mask_c
        x = tl.load(x_ptr + offs_n * stride_xn, mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, x - offset[None, :], 0.0)
        rounded = x.to(high_ptr.dtype.element_ty)
        tl.store(high_ptr + place + offs_n * width, rounded, mask=offs_n < pitch)
        if flag != 0:
            x -= rounded.to(tl.float32)
            tl.store(low_ptr + place + offs_n * width, x.to(high_ptr.dtype.element_ty), mask=offs_n < pitch)


@triton.jit
def _shift(
    x_ptr, mean, length, mask_c, stride_xn,
    DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Offsets [BLOCK_C], 0 for channels that stay as they are; and a flag, 1 if any channel needs low parts."""
    offset = mean.to(DTYPE).to(tl.float32)
    offs = tl.arange(0, BLOCK_N)
    lost = tl.zeros((BLOCK_C,), tl.float32)
    spread = tl.zeros((BLOCK_C,), tl.float32)
    for start_n in range(0, length, BLOCK_N):
        offs_n = (start_n + offs)[:, None].to(tl.int64)
        mask = (offs_n < length) & mask_c
        x = tl.load(x_ptr + offs_n * stride_xn, mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, x - offset[None, :], 0.0)
        lost = tl.maximum(lost, tl.max(tl.abs(x - x.to(DTYPE).to(tl.float32)), axis=0))
        spread += tl.sum(tl.minimum(tl.abs(x), tl.abs(offset)[None, :]), axis=0)
    far = tl.abs(offset) * length.to(tl.float32) > spread * FAR
    split = far & (lost > 0) & (lost < float("inf"))  # inf where x - c overflows fp16
    return tl.where(split | (lost == 0), offset, 0.0), tl.max(split.to(tl.int32), axis=0)


@triton.jit
def _gram(
    high_ptr, low_ptr, flags_ptr, lengths_ptr, gram_ptr, norms_ptr, pitch, width, num_blocks,
    STORED: tl.constexpr, SPLIT: tl.constexpr, LATER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program computes a square tile on or above the diagonal and mirrors it; if LATER, it adds the low parts."""
    pid = tl.program_id(0)
    if STORED:
        frame = (pid // (num_blocks * num_blocks)).to(tl.int64)
        pid_m = pid // num_blocks % num_blocks
    else:
        frame = (pid // num_blocks).to(tl.int64)
        pid_m = pid % num_blocks
    pid_n = pid_m
    if STORED:
        pid_n = pid % num_blocks
    if (pid_n < pid_m) | (pid_n * BLOCK_N >= tl.load(lengths_ptr + frame)):
        return
    offs_m = pid_m * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    high_ptr += frame * pitch * width
    low_ptr += frame * pitch * width
    flags_ptr += frame * (width // BLOCK_C)
    if LATER:
        if not any_flag(flags_ptr, width // BLOCK_C):
            return
        gram_ptrs = gram_ptr + frame * pitch * pitch + offs_m[:, None] * pitch + offs_n[None, :]
        values = with_low(tl.load(gram_ptrs), high_ptr, low_ptr, flags_ptr, offs_m, offs_n, width, BLOCK_C)
    else:
        values = products(high_ptr, low_ptr, flags_ptr, offs_m, offs_n, width, SPLIT, BLOCK_C)
    if pid_m == pid_n:
        on_diagonal = offs_m[:, None] == offs_n[None, :]
        tl.store(norms_ptr + frame * pitch + offs_m, tl.sum(tl.where(on_diagonal, values, 0.0), axis=1))
        values = tl.where(offs_m[:, None] <= offs_n[None, :], values, tl.trans(values))
    if STORED:
        gram_ptr += frame * pitch * pitch
        tl.store(gram_ptr + offs_m[:, None] * pitch + offs_n[None, :], values)
        if pid_m != pid_n:
            tl.store(gram_ptr + offs_n[:, None] * pitch + offs_m[None, :], tl.trans(values))
