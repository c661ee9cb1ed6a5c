"""The control that takes tokens at a uniform stride, as plain down-sampling does."""

import numpy as np

from ppe_npu.methods.space import merged_in_space


def uniform(places: np.ndarray, budget: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The tokens are cut, in raster order, into `budget` runs of equal length (up to one token); the middle of each
    represents those that are nearest to it in space. Nothing is dropped, see random.py.

    Args:
        places: [n, 3] int (frame, row, column) of each token in its image or video.
        budget: m, from 1 to n.
        seed: without meaning here.

    Returns:
        representatives: [m] int64, rising.
        labels: [n] int64, which of them each token belongs to.
    """
    chosen = (2 * np.arange(budget) + 1) * len(places) // (2 * budget)
    return chosen, merged_in_space(places, chosen)
