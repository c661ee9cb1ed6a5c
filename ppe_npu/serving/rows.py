"""Carries position rows through an engine that handles at most three rows and caches features without positions.

An item's rows count from 0 and are appended to its features as trailing channels, so the engine caches, cuts and sends
them together with the features. The prompt's own line of positions only says where each item starts to count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ppe_npu.engine.items import ItemRun
from ppe_npu.errors import InputError, counted

_BASE = 256  # bf16 and fp16 represent all integers up to 256 exactly; above it bf16 skips at least every other one
_REMEDY = "the processor is not the checkpoint's: load it from the same folder"
LARGEST = _BASE**2  # largest extent of a run of visual tokens


def with_rows(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[N, C + 2R] features and their rows, each position as two digits, which are exact in any dtype.

    Args:
        features: [N, C] floating point. rows: [R, N] positions below LARGEST.
    """
    rows = rows.T
    return torch.cat([features, (rows // _BASE).to(features.dtype), (rows % _BASE).to(features.dtype)], dim=1)


def split_rows(joined: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of with_rows: features [N, C], rows [R, N] int64."""
    features, digits = joined[:, : -2 * rows], joined[:, -2 * rows :].long()
    return features, (digits[:, :rows] * _BASE + digits[:, rows:]).T


def thinned_runs(tokens: Sequence[int], placeholder: int, kept: Sequence[int]) -> list[int]:
    """The tokens, with each run of placeholders cut to its number in `kept`.

    Raises:
        InputError: there are not len(kept) runs, or a run is shorter than its number.
    """
    out: list[int] = []
    numbers = iter(kept)
    left = 0
    for place, token in enumerate(tokens):
        if token != placeholder:
            out.append(token)
            continue
        if place == 0 or tokens[place - 1] != placeholder:
            left = next(numbers, 0)
            if not left or list(tokens[place : place + left]) != [placeholder] * left:
                raise InputError(f"the placeholders at {place} are not the {left} of their grid; {_REMEDY}")
        if left:
            out.append(token)
            left -= 1
    if next(numbers, None) is not None:
        raise InputError(f"there are fewer than {len(kept)} runs of placeholders; {_REMEDY}")
    return out


def prompt_line(length: int, items: Sequence[tuple[np.ndarray, Sequence[ItemRun]]]) -> tuple[np.ndarray, int]:
    """A compressed prompt's single line of positions: the position of a text token, and -1 - b at a visual token, where
    b is the position that its run counts from.

    Args:
        length: tokens of the prompt.
        items: for each item, in order, the indices of its visual tokens in the prompt, rising, and its runs.

    Returns:
        the line [length] int64, and the position that follows the prompt.

    Raises:
        InputError: the number of indices differs from what the runs keep, or a run has gaps.
    """
    line, at, following = np.zeros(length, dtype=np.int64), 0, 0
    for columns, runs in items:
        kept = sum(run.kept for run in runs)
        if len(columns) != kept:
            many = counted(len(columns), "visual token")
            raise InputError(f"an item has {many} in the prompt, its grid keeps {kept}; {_REMEDY}")
        for run in runs:
            own, columns = columns[: run.kept], columns[run.kept :]
            start = int(own[0])
            if int(own[-1]) - start != run.kept - 1:
                raise InputError(f"a run of {run.kept} visual tokens at index {start} has gaps; {_REMEDY}")
            line[at:start] = following + np.arange(start - at)
            following += start - at
            line[start : start + run.kept] = -1 - following
            following, at = following + run.extent, start + run.kept
    line[at:] = following + np.arange(length - at)
    return line, following + length - at


def placed_rows(line: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """[R, N] rows of tokens: text has its position in every row, a visual token its own rows plus its run's start.

    Args:
        line: [N] as prompt_line gives it. local: [R, N], read only at visual tokens.
    """
    return torch.where(line < 0, local - 1 - line, line)
