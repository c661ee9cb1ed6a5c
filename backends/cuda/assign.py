"""The assignment of every token to its nearest centre: the last pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import probable_error

from .tiles import Pairs, Tiling, distances


def assign(pairs: Pairs, centers: Tensor, budgets: Tensor, labels: Tensor, channels: int, tiling: Tiling) -> None:
    """Writes labels, int64 [F, N]: the rank of the nearest of a frame's first budgets[f] centres; -1 in padding.

    A centre gets its own rank, and a token between equally near centres gets the lowest of their ranks.
    centers is int64 [F, M]; labels and centers are contiguous.
    """
    frames, count = labels.shape
    num_blocks, bound = tiling.pitch // tiling.block_m, probable_error(channels, torch.float32)
    arguments = (*pairs, centers, budgets, labels, count, centers.shape[1], tiling.pitch, tiling.width)
    _assign[(frames * num_blocks,)](*arguments, bound, num_blocks, **tiling.options(pairs.high.dtype))


@triton.jit
def _assign(
    gram_ptr, high_ptr, low_ptr, flags_ptr, norms_ptr, lengths_ptr, first_ptr, copies_ptr, centers_ptr,
    budgets_ptr, labels_ptr, num_tokens, num_groups, pitch, width, bound, num_blocks,
    STORED: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program compares BLOCK_M tokens with the centres of their frame."""
    pid = tl.program_id(0)
    frame = (pid // num_blocks).to(tl.int64)
    start_m = (pid % num_blocks) * BLOCK_M
    length = tl.load(lengths_ptr + frame)
    budget = tl.load(budgets_ptr + frame).to(tl.int32)
    offs_m = start_m + tl.arange(0, BLOCK_M)
    gram_ptr += frame * pitch * pitch
    high_ptr += frame * pitch * width
    low_ptr += frame * pitch * width
    flags_ptr += frame * (width // BLOCK_C)
    norms_ptr += frame * pitch
    first_ptr += frame * pitch
    has_copies = tl.load(copies_ptr + frame)
    best = tl.full((BLOCK_M,), float("inf"), tl.float32)
    label = tl.zeros((BLOCK_M,), tl.int32)
    for start_n in range(0, tl.where(start_m < length, budget, 0), BLOCK_N):
        rank = start_n + tl.arange(0, BLOCK_N)
        used = rank < budget
        offs_n = tl.load(centers_ptr + frame * num_groups + rank, mask=used, other=0).to(tl.int32)
        d2 = distances(
            gram_ptr, high_ptr, low_ptr, flags_ptr, norms_ptr, first_ptr, has_copies, offs_m, offs_n,
            pitch, width, bound, STORED, SPLIT, BLOCK_C,
        )  # fmt: skip
        # A centre joins itself, not an equal centre that has a lower rank.
        d2 = tl.where(offs_n[None, :] == offs_m[:, None], -1.0, d2)
        d2 = tl.where(used[None, :], d2, float("inf"))
        nearest, place = tl.min(d2, axis=1, return_indices=True)  # the first of equal values
        label = tl.where(nearest < best, start_n + place, label)
        best = tl.minimum(best, nearest)
    label = tl.where(offs_m < length, label, -1)
    tl.store(labels_ptr + frame * num_tokens + offs_m, label.to(tl.int64), mask=offs_m < num_tokens)
