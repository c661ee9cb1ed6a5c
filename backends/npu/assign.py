"""The assignment of every token to its nearest centre: the last pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Tiling


def assign(squared: Tensor, lengths: Tensor, centers: Tensor, budgets: Tensor, tiling: Tiling) -> Tensor:
    """int32 [F, pitch]: the rank of the nearest of a frame's first budgets[f] centres; -1 in padding.

    A centre gets its own rank, and a token between equally near centres gets the lowest of their ranks.
    centers is int32 [F, M] and contiguous, budgets int32 [F].
    """
    labels = torch.empty(squared.shape[:2], dtype=torch.int32, device=squared.device)
    parts = tiling.pitch // tiling.length
    tasks, groups = len(lengths) * parts, centers.shape[1]
    arguments = (squared, lengths, centers, budgets, labels, tasks, parts, groups, tiling.pitch)
    _assign[(tiling.vectors,)](*arguments, LENGTH=tiling.length)
    return labels


@triton.jit
def _assign(
    squared_ptr, lengths_ptr, centers_ptr, budgets_ptr, labels_ptr, tasks, parts, groups, pitch, LENGTH: tl.constexpr
):
    """A task compares LENGTH tokens with the centres of their frame, one by one: each takes one read from a row."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        frame = task // parts
        tokens = (task % parts) * LENGTH + tl.arange(0, LENGTH)
        length = tl.load(lengths_ptr + frame)
        budget = tl.load(budgets_ptr + frame)
        best = tl.full((LENGTH,), float("inf"), tl.float32)
        label = tl.zeros((LENGTH,), tl.int32)
        for rank in range(budget):
            center = tl.load(centers_ptr + frame * groups + rank)
            values = tl.load(squared_ptr + (frame * pitch + center) * pitch + tokens)
            values = tl.where(tokens == center, -1.0, values)  # a centre joins itself, not an equal one of lower rank
            label = tl.where(values < best, rank, label)
            best = tl.minimum(best, values)
        tl.store(labels_ptr + frame * pitch + tokens, tl.where(tokens < length, label, -1))
