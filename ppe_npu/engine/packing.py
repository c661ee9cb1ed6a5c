"""A batch as one row: every sample's tokens follow each other without padding, and attend to their own sample only.

Either the whole decoder has it so (`packed`: training, where no cache is kept), or attention alone (`Segments` of a
padded batch): kernels that are fast take no mask, but the borders of such a row.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ppe_npu.engine.layout import Arrangement, Cell, StageLayout


@dataclass(frozen=True)
class Segments:
    """The row of segments, each attending to itself alone, that attention makes of a batch.

    Args:
        borders: where the samples begin and end in the row: 0, ..., T. On the host.
        places: of a padded batch [T] int64, the place in [B * L] of each of the row's tokens; None: a row already.
        tokens: of a padded batch [B * L] int64, which of the row's tokens stands in each place, T at padding.

    A decoder may be spread over devices, whose hooks move no tensors within this.
    """

    borders: tuple[int, ...]
    places: torch.Tensor | None = None
    tokens: torch.Tensor | None = None

    def row(self, heads: torch.Tensor) -> torch.Tensor:
        """[B, H, L, D] -> [1, H, T, D]."""
        if self.places is None:
            return heads
        return heads.transpose(1, 2).flatten(0, 1).index_select(0, self.places.to(heads.device)).transpose(0, 1)[None]

    def batch(self, row: torch.Tensor, samples: int) -> torch.Tensor:
        """[1, H, T, D] -> [B, H, L, D], with 0 at padding."""
        if self.tokens is None:
            return row
        padded = F.pad(row[0].transpose(0, 1), (0, 0, 0, 0, 0, 1))
        return padded.index_select(0, self.tokens.to(row.device)).unflatten(0, (samples, -1)).transpose(1, 2)


def borders_of(real: np.ndarray) -> tuple[int, ...]:
    """Where samples begin and end in a row of their real tokens. real: [B, L] bool."""
    return (0, *np.cumsum(real.sum(axis=1)).tolist())


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
        borders = borders_of(real)
        laid = {"rows": stage.rows[real][None], "sources": stage.sources[real][None], "after": after}
        out.append(replace(stage, text=text, buckets=buckets, borders=borders, **laid))
    return tuple(out)


def numbers(borders: Sequence[int]) -> np.ndarray:
    """[1, T] the place of each token in its sample."""
    return np.concatenate([np.arange(end - start) for start, end in itertools.pairwise(borders)])[None]
