"""Which representative is nearest to a token where they stand, whatever they look like."""

import numpy as np

_SPACE_FIRST = 4096.0  # a row or column apart counts for more than any number of frames
_DISTANCES_AT_ONCE = 2**22


def merged_in_space(places: np.ndarray, representatives: np.ndarray) -> np.ndarray:
    """Every token joins the representative that is nearest in its frame: by rows and columns, among equals by frames,
    then the first. Exact: all numbers are whole, and below 2**53.

    Args:
        places: [n, 3] int (frame, row, column) of each token.
        representatives: [m] int, which of the tokens these are, rising.

    Returns:
        labels: [n] int64, the number of each token's representative.
    """
    points = places * np.array([1.0, _SPACE_FIRST, _SPACE_FIRST])
    centers = points[representatives]
    squares = (centers**2).sum(1)
    step = max(1, _DISTANCES_AT_ONCE // len(centers))
    # |p - q|^2 without |p|^2, which is the same for all q.
    labels = [(squares - 2 * points[at : at + step] @ centers.T).argmin(1) for at in range(0, len(points), step)]
    out = np.concatenate(labels)
    out[representatives] = np.arange(len(representatives))  # of several at one place each keeps its own
    return out
