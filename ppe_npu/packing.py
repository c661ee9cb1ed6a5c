"""A batch as one row: every sample's tokens follow each other without padding, and attend to their own sample only."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ppe_npu.layout import Arrangement, Cell, StageLayout


def packed(stages: Sequence[StageLayout], samples: int, length: int) -> tuple[StageLayout, ...]:
    """The same merges, each leaving [1, T] tokens in place of [B, L] with padding.

    Args:
        stages: of a batch of `samples` prompts of `length` columns.
    """
    place, out = None, []
    for stage in stages:
        first = place is None  # the first stage's indices point into the prompt as it was given
        text = stage.text if first else place[stage.text]
        buckets = stage.buckets if first else tuple(replace(b, tokens=place[b.tokens]) for b in stage.buckets)
        real, width = stage.after.real, stage.after.real.shape[1]
        place = np.maximum(real.reshape(-1).cumsum() - 1, 0)
        cells = tuple(
            Cell(0, int(place[cell.sample * width + cell.start]), cell.tokens, cell.span) for cell in stage.after.cells
        )
        origins = (np.arange(samples)[:, None] * length + stage.after.origins)[real][None]
        after = Arrangement(np.ones_like(origins, dtype=bool), cells, origins)
        borders = (0, *np.cumsum(real.sum(axis=1)).tolist())
        laid = {"rows": stage.rows[real][None], "sources": stage.sources[real][None], "after": after}
        out.append(replace(stage, text=text, buckets=buckets, borders=borders, **laid))
    return tuple(out)


def numbers(borders: Sequence[int]) -> np.ndarray:
    """[1, T] the place of each token in its sample."""
    return np.concatenate([np.arange(end - start) for start, end in itertools.pairwise(borders)])[None]
