"""The distance to the nearest denser token: the fifth pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import probable_error

from .tiles import Pairs, Tiling, distances

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


def denser_distance(pairs: Pairs, density: Tensor, channels: int, strict: bool, tiling: Tiling) -> Tensor:
    """fp32 [F, pitch]: d^2 per channel to the nearest denser token; the largest number without one; 0 in padding.

    Of two equally dense tokens the one with the lower index counts as denser; with `strict`, neither does.
    """
    nearest = torch.empty_like(density)
    num_blocks, bound = tiling.pitch // tiling.block_m, probable_error(channels, torch.float32)
    arguments = (*pairs, density, nearest, tiling.pitch, tiling.width, bound, 1 / channels, num_blocks)
    _denser_distance[(len(density) * num_blocks,)](*arguments, STRICT=strict, **tiling.options(pairs.high.dtype))
    return nearest


@triton.jit
def _denser_distance(
    gram_ptr, high_ptr, low_ptr, flags_ptr, norms_ptr, lengths_ptr, first_ptr, copies_ptr, density_ptr,
    nearest_ptr, pitch, width, bound, scale, num_blocks,
    STRICT: tl.constexpr, STORED: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program compares BLOCK_M tokens with all of their frame."""
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
    first_ptr += frame * pitch
    has_copies = tl.load(copies_ptr + frame)
    density_ptr += frame * pitch
    density_m = tl.load(density_ptr + offs_m)
    best = tl.full((BLOCK_M,), LARGEST, tl.float32)
    for start_n in range(0, tl.where(start_m < length, length, 0), BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        d2 = distances(
            gram_ptr, high_ptr, low_ptr, flags_ptr, norms_ptr, first_ptr, has_copies, offs_m, offs_n,
            pitch, width, bound, STORED, SPLIT, BLOCK_C,
        )  # fmt: skip
        density_n = tl.load(density_ptr + offs_n)
        denser = density_n[None, :] > density_m[:, None]
        if not STRICT:
            denser = denser | ((density_n[None, :] == density_m[:, None]) & (offs_n[None, :] < offs_m[:, None]))
        d2 = tl.where(denser & (offs_n[None, :] < length), d2, LARGEST)
        best = tl.minimum(best, tl.min(d2, axis=1))
    best = tl.where(best < LARGEST, best * scale, LARGEST)
    tl.store(nearest_ptr + frame * pitch + offs_m, tl.where(offs_m < length, best, 0.0))
