"""A batch as one row: every sample's tokens follow each other without padding, and attend to their own sample only.

The whole decoder has it so: for training, where no cache is kept.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ppe_npu.engine.layout import Arrangement, Cell, Stage
from ppe_npu.engine.rounds import as_tensor
from ppe_npu.engine.segments import Segments, borders_of


def packed(stages: Sequence[Stage], samples: int, length: int) -> tuple[Stage, ...]:
    """The same merges, each leaving [1, T] tokens in place of [B, L] with padding.

    Args:
        stages: of a batch of `samples` prompts of `length` columns, on the host.
    """
    place, out = None, []
    for stage in stages:
        text, rounds = stage.text, stage.rounds
        if place is not None:  # the first stage's indices point into the prompt as it was given
            text, rounds = as_tensor(place[text.numpy()]), (rounds[0].at(place), *rounds[1:])
        real, width = stage.after.real, stage.after.real.shape[1]
        place = np.maximum(real.reshape(-1).cumsum() - 1, 0)
        cells = tuple(
            Cell(0, int(place[cell.sample * width + cell.start]), cell.tokens, cell.span) for cell in stage.after.cells
        )
        origins = (np.arange(samples)[:, None] * length + stage.after.origins)[real][None]
        borders = borders_of(real)
        laid = {"rows": stage.rows[stage.real][None], "sources": stage.sources[stage.real][None]}
        laid |= {"real": as_tensor(np.ones_like(origins, dtype=bool)), "numbers": as_tensor(numbers(borders))}
        after = Arrangement(np.ones_like(origins, dtype=bool), cells, origins)
        out.append(
            replace(stage, text=text, rounds=rounds, after=after, borders=borders, segments=Segments(borders), **laid)
        )
    return tuple(out)


def numbers(borders: Sequence[int]) -> np.ndarray:
    """[1, T] the place of each token in its sample."""
    return np.concatenate([np.arange(end - start) for start, end in itertools.pairwise(borders)])[None]
