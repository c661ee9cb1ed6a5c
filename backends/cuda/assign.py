"""Assignment of every token to its nearest centre: the last pass of the clustering."""

import triton
import triton.language as tl
from torch import Tensor

from .tiles import Centred, Plan, products, squared


def assign(
    gram: Tensor,
    tokens: Centred,
    norms: Tensor,
    lengths: Tensor,
    centers: Tensor,
    budgets: Tensor,
    labels: Tensor,
    plan: Plan,
) -> None:
    """Writes int64 labels [F, N]: the rank of the nearest of the first budgets[f] centres, the lowest of those equally
    near; a centre's own rank; -1 where there is no token. centers: int64 [F, M], labels and centers contiguous."""
    frames, count = labels.shape
    blocks = plan.pitch // plan.rows
    arguments = (gram, *tokens, norms, lengths, centers, budgets, labels, count, centers.shape[1])
    options = {"SPLIT": tokens.split, **plan.passes, **plan.launch}
    _assign[(frames * blocks,)](*arguments, plan.pitch, plan.width, blocks, **options)


@triton.jit
def _assign(
    gram, tokens, low, flags, norms, lengths, centers, budgets, labels, count, groups, pitch, width, blocks,
    STORED: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a frame against its centres."""
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * ROWS
    length = tl.load(lengths + frame)
    budget = tl.load(budgets + frame).to(tl.int32)
    rows = first + tl.arange(0, ROWS)
    gram += frame * pitch * pitch
    tokens += frame * pitch * width
    low += frame * pitch * width
    flags += frame * (width // STEP)
    norms += frame * pitch
    row_norms = tl.load(norms + rows)
    best = tl.full((ROWS,), float("inf"), tl.float32)
    label = tl.zeros((ROWS,), tl.int32)
    for start in range(0, tl.where(first < length, budget, 0), TILE):
        rank = start + tl.arange(0, TILE)
        used = rank < budget
        columns = tl.load(centers + frame * groups + rank, mask=used, other=0).to(tl.int32)
        values = products(gram, tokens, low, flags, rows, columns, pitch, width, STORED, SPLIT, STEP)
        values = squared(values, row_norms, tl.load(norms + columns))
        # A centre is its own, before any copy of it.
        values = tl.where(columns[None, :] == rows[:, None], -1.0, values)
        values = tl.where(used[None, :], values, float("inf"))
        nearest, place = tl.min(values, axis=1, return_indices=True)  # the first of equal ones
        label = tl.where(nearest < best, start + place, label)
        best = tl.minimum(best, nearest)
    label = tl.where(rows < length, label, -1)
    tl.store(labels + frame * count + rows, label.to(tl.int64), mask=rows < count)
