"""What a step leaves alone: all images and videos of a prompt but the first, if its method handles only that one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ppe_npu.engine.layout import Arrangement, Cell, Piece


def left_alone(pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece], np.ndarray]:
    """The pieces that a step with Method.first_only groups; the pieces that it leaves alone, whose tokens come first
    among all that it keeps; and the indices of these tokens before the step."""
    first = first_videos([piece.before for piece in pieces])
    own, others = ([piece for piece in pieces if (piece.before.video in first) == which] for which in (True, False))
    rest = [cell for piece in others for cell in piece.cells]
    return own, as_they_are(others, 0), np.concatenate([np.zeros(0, np.int64), *rest])


def first_videos(cells: Sequence[Cell]) -> set[int]:
    """The first image or video of each sample."""
    found: dict[int, int] = {}
    for cell in sorted(cells, key=lambda cell: cell.start):
        found.setdefault(cell.sample, cell.video)
    return set(found.values())


def later_places(standing: Arrangement) -> np.ndarray:
    """[B * L] bool, True at the visual tokens of every image or video but a sample's first."""
    later, first = np.zeros_like(standing.real), first_videos(standing.cells)
    for cell in (cell for cell in standing.cells if cell.video not in first):
        later[cell.sample, cell.start : cell.start + cell.tokens] = True
    return later.reshape(-1)


def as_they_are(pieces: Sequence[Piece], at: int) -> list[Piece]:
    """The pieces after a round that keeps all their tokens, one after the other from index `at` on."""
    out = []
    for piece in pieces:
        ends = at + np.cumsum([len(cell) for cell in piece.cells], dtype=np.int64)
        own = tuple(np.arange(end - len(cell), end) for cell, end in zip(piece.cells, ends))
        out.append(replace(piece, cells=own))
        at += sum(map(len, piece.cells))
    return out
