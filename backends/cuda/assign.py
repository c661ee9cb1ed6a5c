"""Assignment of every token to its nearest centre: the last pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppe_npu.backends.reference.dpc_knn import probable_error

from .tiles import Pairs, Plan, distances


def assign(pairs: Pairs, centers: Tensor, budgets: Tensor, labels: Tensor, channels: int, plan: Plan) -> None:
    """Writes int64 labels [F, N]: the rank of the nearest of the first budgets[f] centres, the lowest of those equally
    near; a centre's own rank; -1 where there is no token. centers: int64 [F, M], labels and centers contiguous."""
    frames, count = labels.shape
    blocks, bound = plan.pitch // plan.rows, probable_error(channels, torch.float32)
    arguments = (*pairs, centers, budgets, labels, count, centers.shape[1], plan.pitch, plan.width, bound, blocks)
    _assign[(frames * blocks,)](*arguments, **plan.options(pairs.high.dtype))


@triton.jit
def _assign(
    gram, tokens, low, flags, norms, lengths, first, copies, centers, budgets, labels, count, groups, pitch,
    width, bound, blocks,
    STORED: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a frame against its centres."""
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    start_row = (tl.program_id(0) % blocks) * ROWS
    length = tl.load(lengths + frame)
    budget = tl.load(budgets + frame).to(tl.int32)
    rows = start_row + tl.arange(0, ROWS)
    gram += frame * pitch * pitch
    tokens += frame * pitch * width
    low += frame * pitch * width
    flags += frame * (width // STEP)
    norms += frame * pitch
    first += frame * pitch
    copy = tl.load(copies + frame)
    best = tl.full((ROWS,), float("inf"), tl.float32)
    label = tl.zeros((ROWS,), tl.int32)
    for start in range(0, tl.where(start_row < length, budget, 0), TILE):
        rank = start + tl.arange(0, TILE)
        used = rank < budget
        columns = tl.load(centers + frame * groups + rank, mask=used, other=0).to(tl.int32)
        values = distances(
            gram, tokens, low, flags, norms, first, copy, rows, columns, pitch, width, bound, STORED, SPLIT, STEP
        )
        # A centre is its own, before any copy of it.
        values = tl.where(columns[None, :] == rows[:, None], -1.0, values)
        values = tl.where(used[None, :], values, float("inf"))
        nearest, place = tl.min(values, axis=1, return_indices=True)  # the first of equal ones
        label = tl.where(nearest < best, start + place, label)
        best = tl.minimum(best, nearest)
    label = tl.where(rows < length, label, -1)
    tl.store(labels + frame * count + rows, label.to(tl.int64), mask=rows < count)
