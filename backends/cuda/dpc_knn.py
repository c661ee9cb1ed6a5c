"""dpc_knn by six Triton kernels, for all frames of a batch at once; every frame has its own length and budget.

    centred -> gram -> first_equal -> knn_density -> denser_distance -> (sort) -> assign

Dot products are computed once (only half of them, by symmetry) and read by the later passes. At [32, 768, 2048] in bf16
this takes 45 GFLOP, 72 MiB of writes, and reads of at most 2.5 times as much; recomputing them in each pass would take
190 GFLOP. A dot product takes as long as the transfer of 20 bytes (4,096 operations at 1 PFLOP/s, 4.8 TB/s), so storing
its 4 bytes is cheap. Where a channel needs low parts (see gram.py), its block of 64 channels takes three more products,
in a separate launch that exits at once if there are none; with all blocks flagged this takes 190 GFLOP as well.
Memory is bounded by `tiles.STORED_AT_ONCE` for any batch, because frames are processed in chunks. Frames of more than
5,792 tokens are too large to store their products: each pass recomputes its tiles.
"""

import torch
from torch import Tensor

from ppe_npu.backends import device
from ppe_npu.backends.common import MAX_NEIGHBORS, frame_lengths, refused_clustering

from . import tiles
from .assign import assign
from .denser_distance import denser_distance
from .first_equal import checksums, first_equal, share_flat
from .gram import centred, gram
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
    """Limits: fp16, bf16, fp32; 5 neighbours; compute capability 8.0; padded frames of fewer than 2**31 numbers."""
    if reason := refused_clustering(tokens, most_neighbors):
        return reason
    frames, count, channels = tokens.shape
    tiling = tiles.plan(frames, count, channels, tokens.dtype)
    if tiling.pitch * tiling.width >= 2**31:
        return "the Triton kernels take frames of fewer than 2**31 numbers"
    return device.triton_problem(tokens.device, tiles.shared_bytes(tiling, tokens.dtype))


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
    frames, count, channels = tokens.shape
    tiling = tiles.plan(frames, count, channels, tokens.dtype)
    lengths = frame_lengths(tokens, valid)
    budgets, num_neighbors = budgets.contiguous(), num_neighbors.contiguous()
    centers = torch.empty(frames, max_groups, dtype=torch.int64, device=tokens.device)
    labels = torch.empty(frames, count, dtype=torch.int64, device=tokens.device)
    with device.current(tokens.device):
        for start in range(0, frames, tiling.frames):
            part = slice(start, start + tiling.frames)
            arguments = (tokens[part], lengths[part], budgets[part], num_neighbors[part], strict)
            _cluster(*arguments, centers[part], labels[part], tiling)
    return centers, labels


def _cluster(
    tokens: Tensor,
    lengths: Tensor,
    budgets: Tensor,
    num_neighbors: Tensor,
    strict: bool,
    centers: Tensor,
    labels: Tensor,
    tiling: tiles.Tiling,
) -> None:
    """Writes centers and labels of a chunk of frames."""
    count, channels = tokens.shape[1:]
    moved = centred(tokens, lengths, tiling)
    found, norms = gram(moved, lengths, tiling)
    first, copies = first_equal(found, moved, norms, lengths, checksums(tokens), channels, tiling)
    share_flat(first, copies, norms, lengths, tokens)
    pairs = tiles.Pairs(found, *moved, norms, lengths, first, copies)
    density = knn_density(pairs, num_neighbors, channels, tiling)
    nearest = denser_distance(pairs, density, channels, strict, tiling)
    # In padding, nearest is 0 and its log -inf, so padding is sorted last.
    score = torch.add(density, nearest.log(), alpha=0.5)[:, :count]
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    centers.copy_(order[:, : centers.shape[1]])
    assign(pairs, centers, budgets, labels, channels, tiling)
