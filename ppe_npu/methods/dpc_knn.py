"""Density-peaks clustering with k nearest neighbours, as Chat-UniVi (arXiv 2311.08046, section 3.2) merges tokens."""

import torch

from ppe_npu import backends
from ppe_npu.methods.grouping import Grouping


def dpc_knn(
    tokens: torch.Tensor,
    valid: torch.Tensor | None,
    budgets: torch.Tensor,
    max_groups: int,
    order: str,
    ratio: int = 0,
    ties: str = "first",
) -> Grouping:
    """Group the tokens of each frame around `budgets[f]` density peaks.

    Args:
        tokens: [F, N, C] floating point; no gradient flows into the choice of groups.
        valid: [F, N] bool, False where a frame has no token, or None.
        budgets: [F] int64, groups of each frame.
        max_groups: the largest of them, known to the host.
        order: "raster" or "score", the order of the groups of a frame.
        ratio: which one of a list of ratios this is; those after the first look at fewer neighbours.
        ties: as CompressionConfig.ties.
    """
    with torch.no_grad():
        neighbors = num_neighbors(budgets, ratio)
        centers, labels = backends.dpc_knn(
            tokens.detach(), valid, budgets, max_groups, neighbors, strict=ties == "none"
        )
        return Grouping.from_centers(centers, labels, budgets, order)


def num_neighbors(budgets: torch.Tensor, ratio: int = 0) -> torch.Tensor:
    """k of the nearest neighbours: 5 (3 after the first ratio), and where a frame keeps fewer tokens than that
    min(3, max(half of them, 1))."""
    most = 5 if ratio == 0 else 3
    return torch.where(budgets >= most, most, (budgets // 2).clamp(1, 3))
