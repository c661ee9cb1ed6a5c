"""Which tokens of a frame are equal: the third pass of the clustering, between the products and their readers.

The rules are those of the specification (docs/numerics.md). On a GPU, copies of a token have bitwise equal products at
any position in the frame. Tokens of a flat area do not, because they differ by the rounding of earlier layers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import flat_square, largest_error, probable_error

from .tiles import Centred, Tiling, products, stored


def checksums(tokens: Tensor) -> Tensor:
    """int32 [F, N]: each token's bits as integers, summed over channels with wrap-around, in any order."""
    return tokens.view(torch.int32 if tokens.dtype == torch.float32 else torch.int16).sum(-1, dtype=torch.int32)


def first_equal(
    gram: Tensor, tokens: Centred, norms: Tensor, lengths: Tensor, sums: Tensor, channels: int, tiling: Tiling
) -> tuple[Tensor, Tensor]:
    """Finds, for each token, the first token of its frame at distance zero.

    d^2 counts as zero below `probable_error`, and up to `largest_error` if the two tokens have the same checksum.

    Args:
        gram, norms: the results of `gram`. tokens: the result of `centred`.
        sums: int32 [F, N], contiguous, from `checksums`.

    Returns:
        int32 [F, pitch], a token index; and int32 [F], 1 where any token of the frame equals an earlier one, else 0.
    """
    frames, num_blocks = len(lengths), tiling.pitch // tiling.block_m
    first = torch.empty(norms.shape, dtype=torch.int32, device=norms.device)
    copies = torch.zeros(frames, dtype=torch.int32, device=norms.device)
    bounds = probable_error(channels, torch.float32), largest_error(channels, torch.float32)
    arguments = (gram, *tokens, norms, lengths, sums, first, copies, sums.shape[1], tiling.pitch, tiling.width, *bounds)
    _first_equal[(frames * num_blocks,)](*arguments, num_blocks, **tiling.options(tokens.high.dtype))
    return first, copies


def share_flat(first: Tensor, copies: Tensor, norms: Tensor, lengths: Tensor, tokens: Tensor) -> None:
    """Sets the first equal token to 0, in place, for all tokens of frames that are all flat. norms: `gram`'s."""
    there = torch.arange(norms.shape[1], device=norms.device) < lengths[:, None]
    flat = norms.masked_fill(~there, 0).amax(1) <= flat_square(tokens)
    first.masked_fill_(flat[:, None], 0)
    copies.masked_fill_(flat, 1)


@triton.jit
def _first_equal(
    gram_ptr, high_ptr, low_ptr, flags_ptr, norms_ptr, lengths_ptr, sums_ptr, first_ptr, copies_ptr, num_tokens,
    pitch, width, probable, largest, num_blocks,
    STORED: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program compares BLOCK_M tokens with all earlier ones of their frame."""
    pid = tl.program_id(0)
    frame = (pid // num_blocks).to(tl.int64)
    start_m = (pid % num_blocks) * BLOCK_M
    length = tl.load(lengths_ptr + frame)
    offs_m = start_m + tl.arange(0, BLOCK_M)
    gram_ptr += frame * pitch * pitch
    high_ptr += frame * pitch * width
    low_ptr += frame * pitch * width
    flags_ptr += frame * (width // BLOCK_C)
    norms_ptr += frame * pitch
    sums_ptr += frame * num_tokens
    found = offs_m
    for start_n in range(0, tl.where(start_m < length, start_m + BLOCK_M, 0), BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        if STORED:
            d2 = stored(gram_ptr, offs_m, offs_n, pitch)
        else:
            d2 = products(high_ptr, low_ptr, flags_ptr, offs_m, offs_n, width, SPLIT, BLOCK_C)
        norms_m, norms_n = tl.load(norms_ptr + offs_m)[:, None], tl.load(norms_ptr + offs_n)[None, :]
        d2 = (norms_m - d2) + (norms_n - d2)
        both = norms_m + norms_n
        sums_m = tl.load(sums_ptr + offs_m, mask=offs_m < length, other=0)
        sums_n = tl.load(sums_ptr + offs_n, mask=offs_n < length, other=0)
        alike = sums_m[:, None] == sums_n[None, :]
        near = (d2 < probable * both) | (d2 == 0) | (alike & (d2 <= largest * both))
        near = near & (offs_n[None, :] < offs_m[:, None]) & (offs_m[:, None] < length)
        found = tl.minimum(found, tl.min(tl.where(near, offs_n[None, :], pitch), axis=1))
    tl.store(first_ptr + frame * pitch + offs_m, found)
    if tl.min(found - offs_m, axis=0) < 0:
        tl.atomic_max(copies_ptr + frame, 1)
