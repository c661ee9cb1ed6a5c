"""The control that pools windows: average pooling of the grid, for any budget."""

import math
from dataclasses import dataclass

import numpy as np

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.space import each_cell
from ppe_npu.methods.view import View


@register("avg_pool")
@dataclass(frozen=True)
class AvgPool(Method):
    """Windows of the grid, each pooled to its mean.

    Args:
        ratio: fraction of a frame's tokens to keep: ceil(n * ratio) of n.
    """

    ratio: float = share(0.45)

    needs = frozenset({"places"})

    def group(self, view: View) -> Grouping:
        view.require("avg_pool", "places")
        return each_cell(view, avg_pool)


def avg_pool(places: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the grid into `budget` windows of near-equal area, each without holes.

    Whole rows are joined into bands that are about as high as a square window of the wanted area. The tokens of a band
    are visited column by column, alternately down and up, and cut into runs of equal length (up to one token). Where
    sides and budget allow it, these are the usual windows, such as 2 x 2 at ratio 0.25 with even sides. A window is
    represented by the token nearest to its middle; ties go to the first, as the top left one of 2 x 2.

    In a cascade the tokens are representatives of windows, and their places do not form a grid. They are divided in the
    same way, over the extent of their rows and columns. Frames are pooled into events, which are runs of frames.

    Args:
        places: [n, 3] int (frame, row, column) of each token in its image or video.
        budget: m, from 1 to n.

    Returns:
        representatives: [m] int64, ascending.
        labels: [n] int64, the index in `representatives` that each token belongs to.
    """
    frame, row, column = (places - places.min(0)).T
    band, counts, shares = _bands(row, column, budget)
    path = np.lexsort((frame, np.where(column % 2 == 0, row, -row), column, band))
    labels, at, first = np.empty(len(places), np.int64), 0, 0
    for count, groups in zip(counts, shares):
        labels[path[at : at + count]] = first + np.arange(count) * groups // count
        at, first = at + count, first + groups
    middles = _middles(places, labels)
    order = np.argsort(middles)
    return middles[order], np.argsort(order)[labels]


def _bands(row: np.ndarray, column: np.ndarray, budget: int) -> tuple[np.ndarray, list[int], list[int]]:
    """[n] int64 band of each token, and the number of tokens and of windows in each band.

    There are as many bands as square windows would give, or one more or fewer if that makes the largest window smaller.
    No window is narrower than a column, and no band lower than a row.
    """
    height, width = int(row.max()) + 1, int(column.max()) + 1
    most = min(height, budget)
    least = min(math.ceil(budget / width), most)
    wanted = round(height / math.sqrt(height * width / budget))
    tried = {min(max(wanted + more, least), most): more != 0 for more in (1, -1, 0)}
    cuts = []
    for number, is_second_best in tried.items():
        band = row * number // height
        counts = np.bincount(band)
        counts = counts[counts > 0].tolist()  # without a grid a band may be empty
        shares = _shares(counts, budget)
        largest = max(-(-count // share) for count, share in zip(counts, shares))
        cuts.append((largest, is_second_best, number, (band, counts, shares)))
    return min(cuts)[-1]


def _shares(counts: list[int], budget: int) -> list[int]:
    """Divide the budget in proportion to the bands' tokens; a band gets at least one and at most all of its tokens."""
    shares, tokens = [], sum(counts)
    for number, count in enumerate(counts):
        later = len(counts) - number - 1
        wanted = (2 * budget * count + tokens) // (2 * tokens)
        shares.append(min(max(wanted, 1, budget - (tokens - count)), count, budget - later))
        budget, tokens = budget - shares[-1], tokens - count
    return shares


def _middles(places: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[m] int64, the token nearest to each group's mean place by row and column; ties by frame, then to the first."""
    sizes = np.bincount(labels)
    # Distances are multiplied by the size, so that all numbers are integers.
    sums = np.stack([np.bincount(labels, axis) for axis in places.T], axis=1).astype(np.int64)
    away = (sizes[labels, None] * places - sums[labels]) ** 2
    order = np.lexsort((away[:, 0], away[:, 1] + away[:, 2], labels))
    return order[np.cumsum(sizes) - sizes]
