"""How position rows travel through an engine that knows three rows at most, and caches features by themselves.

An item's own rows count from 0 and travel beside its features, as trailing channels: whatever the engine does with
features (cache, cut, send them) it does with the rows. The prompt's line says only from where an item counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ppe_npu.engine.items import ItemRun
from ppe_npu.errors import InputError

_BASE = 256  # bf16 and fp16 hold whole numbers up to here exactly; of larger ones bf16 holds every other at most
LARGEST = _BASE**2  # extent of a run of visual tokens


def with_rows(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[N, C + 2R] features and, exactly in any dtype, their rows in two digits.

    Args:
        features: [N, C] floating point. rows: [R, N] positions below LARGEST.
    """
    rows = rows.T
    return torch.cat([features, (rows // _BASE).to(features.dtype), (rows % _BASE).to(features.dtype)], dim=1)


def split_rows(joined: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What went into with_rows: features [N, C], rows [R, N] int64."""
    features, digits = joined[:, : -2 * rows], joined[:, -2 * rows :].long()
    return features, (digits[:, :rows] * _BASE + digits[:, rows:]).T


def thinned_runs(tokens: Sequence[int], placeholder: int, kept: Sequence[int]) -> list[int]:
    """Tokens of which each run of placeholders keeps its number.

    Raises:
        InputError: more or fewer runs, or one that is shorter than what it keeps.
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
                raise InputError(f"the processor's placeholders at {place} are not the {left} that their grid keeps")
        if left:
            out.append(token)
            left -= 1
    if next(numbers, None) is not None:
        raise InputError(f"the processor made fewer than {len(kept)} runs of placeholders")
    return out


def prompt_line(length: int, items: Sequence[tuple[np.ndarray, Sequence[ItemRun]]]) -> tuple[np.ndarray, int]:
    """A compressed prompt's one line of positions: of text as they are, at a visual token of an item -1 - b, where b is
    the position that its run counts from.

    Args:
        length: tokens of the prompt.
        items: of each item, in order, the columns of its visual tokens, rising, and its runs.

    Returns:
        the line [length] int64, and the position after the prompt's largest.

    Raises:
        InputError: columns that are not as many as the runs keep, or a run with gaps.
    """
    line, at, following = np.zeros(length, dtype=np.int64), 0, 0
    for columns, runs in items:
        kept = sum(run.kept for run in runs)
        if len(columns) != kept:
            raise InputError(f"an item has {len(columns)} visual tokens in the prompt, but its grid keeps {kept}")
        for run in runs:
            own, columns = columns[: run.kept], columns[run.kept :]
            start = int(own[0])
            if int(own[-1]) - start != run.kept - 1:
                raise InputError(f"a run of {run.kept} visual tokens at index {start} has gaps")
            line[at:start] = following + np.arange(start - at)
            following += start - at
            line[start : start + run.kept] = -1 - following
            following, at = following + run.extent, start + run.kept
    line[at:] = following + np.arange(length - at)
    return line, following + length - at


def placed_rows(line: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """The rows [R, N] of tokens: of text its position in every row, of visual tokens their own and where these begin.

    Args:
        line: [N] as prompt_line gives it. local: [R, N], read at visual tokens alone.
    """
    return torch.where(line < 0, local - 1 - line, line)
