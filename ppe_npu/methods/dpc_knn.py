"""Density-peaks clustering with k nearest neighbours, as Chat-UniVi (arXiv 2311.08046, section 3.2) merges tokens."""

import numpy as np
import torch

from ppe_npu import backends
from ppe_npu.grouping import Grouping


def dpc_knn(tokens: torch.Tensor, valid: torch.Tensor | None, budgets: np.ndarray, order: str) -> Grouping:
    """Group the tokens of each frame around `budgets[f]` density peaks.

    Args:
        tokens: [F, N, C] floating point; no gradient flows into the choice of groups.
        valid: [F, N] bool, False where a frame has no token, or None.
        budgets: [F] on the host, groups of each frame.
        order: "raster" or "score", the order of the groups of a frame.
    """
    kept, neighbors = (
        torch.from_numpy(counts).to(tokens.device, non_blocking=True) for counts in (budgets, num_neighbors(budgets))
    )
    with torch.no_grad():
        centers, labels = backends.dpc_knn(tokens.detach(), valid, kept, int(budgets.max()), neighbors)
        return Grouping.from_centers(centers, labels, kept, order)


def num_neighbors(budgets: np.ndarray) -> np.ndarray:
    """k of the nearest neighbours: 5, and where a frame keeps fewer tokens min(3, max(half of them, 1))."""
    return np.where(budgets >= 5, 5, np.minimum(3, np.maximum(budgets // 2, 1)))
