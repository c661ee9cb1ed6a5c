"""Helpers for methods that need only places: grouping cell by cell on the host, and merging into the nearest token."""

import functools
from collections.abc import Callable

import numpy as np
import torch

from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View

_SPACE_FIRST = 4096.0  # a row or column apart counts for more than any number of frames
_DISTANCES_AT_ONCE = 2**22


def each_cell(view: View, choose: Callable, *settings) -> Grouping:
    """The Grouping of all cells, by a function that groups one cell.

    Args:
        choose: (places [n, 3], number of kept tokens m, *settings) -> (representatives [m] ascending, labels [n]), all
            NumPy arrays. Its results are cached, because cells with the same places have the same groups.
    """
    places = view.places.cpu().numpy()
    sizes, budgets = view.present.sum(1).tolist(), view.num_kept.tolist()
    labels = np.full(places.shape[:2], -1, dtype=np.int64)
    representatives = np.zeros((len(places), view.most), dtype=np.int64)
    for cell, (size, budget) in enumerate(zip(sizes, budgets)):
        chosen, of_token = _chosen(choose, places[cell, :size].tobytes(), budget, *settings)
        labels[cell, :size], representatives[cell, :budget] = of_token, chosen
    return Grouping.of(torch.from_numpy(labels), torch.from_numpy(representatives)).to(view.places.device)


@functools.lru_cache(maxsize=1024)
def _chosen(choose: Callable, places: bytes, budget: int, *settings) -> tuple[np.ndarray, np.ndarray]:
    return choose(np.frombuffer(places, np.int64).reshape(-1, 3), budget, *settings)


def merged_in_space(places: np.ndarray, representatives: np.ndarray) -> np.ndarray:
    """Merge every token into the nearest representative by row and column; ties by frame, then to the first. This is
    exact, because all numbers are integers below 2**53.

    Args:
        places: [n, 3] int (frame, row, column) of each token.
        representatives: [m] int, indices of tokens, ascending.

    Returns:
        labels: [n] int64, the index in `representatives` that each token belongs to.
    """
    points = places * np.array([1.0, _SPACE_FIRST, _SPACE_FIRST])
    centers = points[representatives]
    squares = (centers**2).sum(1)
    step = max(1, _DISTANCES_AT_ONCE // len(centers))
    # |p - q|^2 without the term |p|^2, which is the same for all q.
    labels = [(squares - 2 * points[at : at + step] @ centers.T).argmin(1) for at in range(0, len(points), step)]
    out = np.concatenate(labels)
    out[representatives] = np.arange(len(representatives))  # several at one place stay in their own groups
    return out
