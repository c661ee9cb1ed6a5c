"""dpc_knn by Triton kernels that are made for Ascend's cores, for all frames of a batch at once.

    centre -> products, distances -> first equal, shared rows -> knn_density -> denser_distance -> (sort) -> assign

They follow the specification step by step: tokens are centred in fp32 and multiplied in fp32, and distances are
computed once and read by the later passes. Unlike the CUDA kernels, they are written for the strengths of this chip: as
many programs as cores, each with a loop over tasks; rows of at least 32 bytes; int32 indices; no access to single
elements; and no reads that a mask discards afterwards. docs/npu.md says what of this was verified, and by which tool.
"""

import torch
from torch import Tensor

from ppe_npu.backends import device
from ppe_npu.backends.common import MAX_NEIGHBORS, frame_lengths, refused_clustering
from ppe_npu.backends.reference.dpc_knn import flat_square

from . import tiles
from .assign import assign
from .centre import centred
from .chips import chip, problem
from .denser_distance import denser_distance
from .first_equal import share_rows
from .gram import squared_distances
from .knn_density import knn_density


def refusal(
    tokens: Tensor,
    valid: Tensor | None,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    *,
    strict: bool = False,
    most_neighbors: int = MAX_NEIGHBORS,
) -> str | None:
    """Limits: fp16, bf16, fp32; triton-ascend; at most 5 neighbours; frames of at most 5,760 tokens, and of fewer than
    2**31 numbers when padded."""
    if reason := refused_clustering(tokens, most_neighbors):
        return reason
    reason = problem(tokens.device)
    if reason is not None:
        return reason
    tiling = tiles.plan(chip(tokens.device), *tokens.shape)
    if tiling.pitch**2 > tiles.STORED_AT_ONCE or tiling.pitch * tiling.width >= 2**31:
        return "the Triton kernels take frames of at most 5,760 tokens and 2**31 numbers"
    return None


@torch.no_grad()
def dpc_knn(
    tokens: Tensor,
    valid: Tensor | None,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    strict: bool = False,
    most_neighbors: int = MAX_NEIGHBORS,
) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.dpc_knn`."""
    frames = len(tokens)
    tiling = tiles.plan(chip(tokens.device), *tokens.shape)
    lengths = frame_lengths(tokens, valid)
    budgets, num_neighbors = budgets.to(torch.int32), num_neighbors.to(torch.int32)
    parts = []
    with device.current(tokens.device):
        for start in range(0, frames, tiling.frames):
            part = slice(start, start + tiling.frames)
            numbers = (lengths[part], budgets[part], max_groups, num_neighbors[part])
            parts.append(_cluster(tokens[part], *numbers, strict, tiling))
    centers, labels = (torch.cat(part) if len(parts) > 1 else part[0] for part in zip(*parts))
    return centers, labels


def _cluster(
    tokens: Tensor,
    lengths: Tensor,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    strict: bool,
    tiling: tiles.Tiling,
) -> tuple[Tensor, Tensor]:
    """The centres and labels of a chunk of frames."""
    count, channels = tokens.shape[1:]
    moved = centred(tokens, lengths, tiling)
    sums = moved.view(torch.int32).sum(-1, dtype=torch.int32)
    squared, norms = squared_distances(moved, lengths, channels, tiling)
    flat = norms.masked_fill(norms.isinf(), 0).amax(1) * channels <= flat_square(tokens)
    share_rows(squared, norms, lengths, sums, flat, channels, tiling)
    density = knn_density(squared, lengths, num_neighbors, tiling)
    nearest = denser_distance(squared, lengths, density, strict, tiling)
    # In padding, nearest is 0 and its log -inf, so padding is sorted last.
    score = torch.add(density, nearest.log(), alpha=0.5)[:, :count]
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    centers = order[:, :max_groups].contiguous()
    labels = assign(squared, lengths, centers.to(torch.int32), budgets, tiling)
    return centers, labels[:, :count].to(torch.int64)
