"""The grids of images and videos, as processors give them, checked."""

import numbers
from typing import Any

import numpy as np

from ppe_npu.errors import InputError, shown


def whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number of at least `least`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least


def read_grids(grid_thw: Any, merge_size: int) -> np.ndarray:
    """[3] or [n, 3] integers, (frames, height, width) in patches, from a list, an array or a tensor of them.

    Raises:
        InputError: they are none, or merge_size is not a whole number of at least 1.
    """
    if not whole(merge_size, 1):
        raise InputError(f"merge_size={shown(merge_size)}: give how many patches make a token along each side, from 1")
    try:
        grids = np.array([_as_numbers(part) for part in grid_thw])
    except (TypeError, ValueError):  # nothing to go through, or grids of different lengths
        grids = np.array(None)
    form = f"grid_thw={shown(_as_numbers(grid_thw))}: give (frames, height, width) in patches, "
    if (grids.size or grids.ndim != 1) and (grids.dtype.kind not in "iu" or grids.ndim > 2 or grids.shape[-1] != 3):
        raise InputError(f"{form}three whole numbers for each image or video")
    if (grids.reshape(-1, 3) % [1, merge_size, merge_size]).any():
        raise InputError(f"{form}with height and width multiples of {merge_size}")
    if (grids < 1).any():
        raise InputError(f"{form}each at least 1")
    return grids


def _as_numbers(given: Any) -> Any:
    """A tensor or a list of tensors as lists of numbers."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if type(given) not in (list, tuple):
        return given
    return [part.tolist() if hasattr(part, "tolist") else part for part in given]
