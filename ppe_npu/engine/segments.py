"""The samples of a batch as segments of one row, which attention keeps apart: kernels that are fast take no mask, but
the borders of such a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ppe_npu.engine.rounds import Movable


@dataclass(frozen=True)
class Segments(Movable):
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

    @classmethod
    def of(cls, real: np.ndarray) -> Segments:
        """Of a batch [B, L] with padding."""
        flat = real.reshape(-1)
        tokens = np.where(flat, flat.cumsum() - 1, flat.sum())
        return cls(borders_of(real), torch.from_numpy(flat.nonzero()[0]), torch.from_numpy(tokens))

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
