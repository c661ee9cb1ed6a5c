"""The kNN density of every token: the fourth pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import probable_error

from .tiles import Pairs, Tiling, distances


def knn_density(pairs: Pairs, num_neighbors: Tensor, channels: int, tiling: Tiling) -> Tensor:
    """Log density, fp32 [F, pitch]: negative mean d^2 of a token to its k nearest, including itself; 0 in padding.

    num_neighbors is int64 [F], from 1 to 5. d^2 is divided by the number of channels.
    """
    density = torch.empty_like(pairs.norms)
    num_blocks, bound = tiling.pitch // tiling.block_m, probable_error(channels, torch.float32)
    arguments = (*pairs, num_neighbors, density, tiling.pitch, tiling.width, bound, 1 / channels, num_blocks)
    _knn_density[(len(density) * num_blocks,)](*arguments, **tiling.options(pairs.high.dtype))
    return density


@triton.jit
def _knn_density(
    gram_ptr, high_ptr, low_ptr, flags_ptr, norms_ptr, lengths_ptr, first_ptr, copies_ptr, num_neighbors_ptr,
    density_ptr, pitch, width, bound, scale, num_blocks,
    STORED: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program compares BLOCK_M tokens with all of their frame; the four smallest d^2 stay in registers."""
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
    infinity = float("inf")
    one = tl.full((BLOCK_M,), infinity, tl.float32)
    two = tl.full((BLOCK_M,), infinity, tl.float32)
    three = tl.full((BLOCK_M,), infinity, tl.float32)
    four = tl.full((BLOCK_M,), infinity, tl.float32)
    for start_n in range(0, tl.where(start_m < length, length, 0), BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        d2 = distances(
            gram_ptr, high_ptr, low_ptr, flags_ptr, norms_ptr, first_ptr, has_copies, offs_m, offs_n,
            pitch, width, bound, STORED, SPLIT, BLOCK_C,
        )  # fmt: skip
        hidden = (offs_n[None, :] >= length) | (offs_n[None, :] == offs_m[:, None])
        d2 = tl.where(hidden, infinity, d2)
        for _ in tl.static_range(4):
            nearest, place = tl.min(d2, axis=1, return_indices=True)
            d2 = tl.where(offs_n[None, :] - start_n == place[:, None], infinity, d2)
            four = tl.minimum(four, tl.maximum(three, nearest))
            three = tl.minimum(three, tl.maximum(two, nearest))
            two = tl.minimum(two, tl.maximum(one, nearest))
            one = tl.minimum(one, nearest)
    k = tl.load(num_neighbors_ptr + frame)
    total = tl.where(k > 1, one, 0.0) + tl.where(k > 2, two, 0.0)
    total = total + tl.where(k > 3, three, 0.0) + tl.where(k > 4, four, 0.0)
    tl.store(density_ptr + frame * pitch + offs_m, tl.where(offs_m < length, -total * (scale / k.to(tl.float32)), 0.0))
