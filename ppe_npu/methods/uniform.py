"""The control that takes tokens at a uniform stride, like plain down-sampling."""

from dataclasses import dataclass

import numpy as np

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.space import each_cell, merged_in_space
from ppe_npu.methods.view import View


@register("uniform")
@dataclass(frozen=True)
class Uniform(Method):
    """Tokens at a uniform stride, and every other token merged into the nearest of them in space.

    Args:
        ratio: fraction of a frame's tokens to keep: ceil(n * ratio) of n.
    """

    ratio: float = share(0.45)

    needs = frozenset({"places"})

    def group(self, view: View) -> Grouping:
        view.require("uniform", "places")
        return each_cell(view, uniform)


def uniform(places: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the tokens, in raster order, into `budget` runs of equal length (up to one token); the middle token of each
    run represents the tokens that are nearest to it in space. No token is dropped, see random.py.

    Args:
        places: [n, 3] int (frame, row, column) of each token in its image or video.
        budget: m, from 1 to n.

    Returns:
        representatives: [m] int64, ascending.
        labels: [n] int64, the index in `representatives` that each token belongs to.
    """
    chosen = (2 * np.arange(budget) + 1) * len(places) // (2 * budget)
    return chosen, merged_in_space(places, chosen)
