"""The control that chooses at random, which a choice by features must beat.

The random baseline of pruning papers drops the tokens that it does not choose. Here no token is dropped: every other
token is merged into the nearest chosen one in space, as a clustering method merges it by features. So the control and
such a method differ only in the choice of groups, and a merged token has members whose positions it can keep.
"""

from dataclasses import dataclass

import numpy as np

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.space import each_cell, merged_in_space
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("random")
@dataclass(frozen=True)
class Random(Method):
    """Tokens chosen at random, and every other token merged into the nearest chosen one in space.

    Args:
        ratio: fraction of a frame's tokens to keep: ceil(n * ratio) of n.
        seed: equal seeds choose equal tokens on every device.
    """

    ratio: float = share(0.45)
    seed: int = setting(0, least=0, remedy="give a whole number, at least 0 and below 2**63")

    needs = frozenset({"places"})

    def group(self, view: View) -> Grouping:
        view.require("random", "places")
        return each_cell(view, random, self.seed)


def random(places: np.ndarray, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Let the `budget` tokens with the smallest hash of (seed, frame, row, column) represent the others.

    No random number generator is used. A seed and a size give the same choice on every device, in every batch and for
    all images of that size, but a different one in each frame of a video. A smaller budget chooses a subset of what a
    larger one chooses. Use several seeds to see the spread.

    Args:
        places: [n, 3] int (frame, row, column) of each token in its image or video.
        budget: m, from 1 to n.
        seed: a number from 0 on.

    Returns:
        representatives: [m] int64, ascending.
        labels: [n] int64, the index in `representatives` that each token belongs to.
    """
    hashed = np.full(len(places), seed, dtype=np.uint64)
    for axis in places.T.astype(np.uint64):
        hashed = _mixed(hashed) + axis
    chosen = np.sort(np.argsort(_mixed(hashed), kind="stable")[:budget])
    return chosen, merged_in_space(places, chosen)


def _mixed(value: np.ndarray) -> np.ndarray:
    """SplitMix64's step and finaliser (Steele, Lea and Flood, 2014), which map close numbers to unrelated ones."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
