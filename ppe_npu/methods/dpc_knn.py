"""Density-peaks clustering with k nearest neighbours, as Chat-UniVi (arXiv 2311.08046, section 3.2) merges tokens."""

import torch

from ppe_npu import backends
from ppe_npu.grouping import Grouping


def dpc_knn(
    tokens: torch.Tensor, valid: torch.Tensor | None, budgets: torch.Tensor, max_groups: int, order: str
) -> Grouping:
    """Group the tokens of each frame around `budgets[f]` density peaks.

    Args:
        tokens: [F, N, C] floating point; no gradient flows into the choice of groups.
        valid: [F, N] bool, False where a frame has no token, or None.
        budgets: [F] int64, groups of each frame.
        max_groups: the largest of them, known to the host.
        order: "raster" or "score", the order of the groups of a frame.
    """
    with torch.no_grad():
        centers, labels = backends.dpc_knn(tokens.detach(), valid, budgets, max_groups, num_neighbors(budgets))
        return Grouping.from_centers(centers, labels, budgets, order)


def num_neighbors(budgets: torch.Tensor) -> torch.Tensor:
    """k of the nearest neighbours: 5, and where a frame keeps fewer tokens min(3, max(half of them, 1))."""
    return torch.where(budgets >= 5, 5, (budgets // 2).clamp(1, 3))
