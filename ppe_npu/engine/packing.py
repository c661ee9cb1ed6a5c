"""Arranges the samples of a batch: padded to one length, or packed.

A packed batch is one row: the samples follow each other without padding, and a token attends to its own sample only. In
training, where no cache is kept, the whole decoder can run on a packed batch. Attention alone can do so with any batch,
as segments of one row that do not attend to each other, because fast kernels take the borders of such a row, but no
mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ppe_npu.engine.rounds import Movable

Rows = Sequence[tuple[np.ndarray, np.ndarray]]  # for each sample [l] the row at each place, and [l] their sources
Firsts = list[tuple[int, int]]  # for each sample the row of the batch that it is in, and its first place there


def padded_rows(samples: Rows, empty: int, left: bool) -> tuple[np.ndarray, np.ndarray, Firsts]:
    """[B, L] rows, [B, L] sources and firsts of samples that are padded with the row `empty`, on the left or right."""
    length = max(len(rows) for rows, _ in samples)
    rows, sources = np.full((len(samples), length), empty), np.zeros((len(samples), length), dtype=np.int64)
    firsts = []
    for sample, own in enumerate(samples):
        first = length - len(own[0]) if left else 0
        place = slice(first, first + len(own[0]))
        rows[sample, place], sources[sample, place] = own
        firsts.append((sample, first))
    return rows, sources, firsts


def packed_rows(
    samples: Rows, width: int, borders: tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray, Firsts, tuple[int, ...]]:
    """[1, T] rows and [1, T] sources of a packed batch, firsts, and where its samples begin and end: 0, ..., T.

    Args:
        samples: the batch's samples, or its one row if it is packed already; sources never fall.
        width: how many columns the batch has that the sources point into.
        borders: those of the samples in that batch, if it is packed already.
    """
    sources = np.concatenate([sample * width + own for sample, (_, own) in enumerate(samples)])
    ends = np.cumsum([0, *(len(own) for own, _ in samples)]).tolist()
    cuts = ends if borders is None else np.searchsorted(sources, borders).tolist()
    rows = np.concatenate([own for own, _ in samples])
    return rows[None], sources[None], [(0, first) for first in ends[:-1]], tuple(cuts)


def numbers(borders: Sequence[int]) -> np.ndarray:
    """[1, T] the index of each token in its sample."""
    return np.concatenate([np.arange(end - start) for start, end in itertools.pairwise(borders)])[None]


@dataclass(frozen=True)
class Segments(Movable):
    """How attention turns a batch into one row of segments, each of which attends to itself alone.

    Args:
        borders: where the samples begin and end in the row: 0, ..., T. On the host.
        places: for a padded batch [T] int64, the place in [B * L] of each of the row's tokens; None: a row already.
        tokens: for a padded batch [B * L] int64, the index of each place's token in the row, T at padding.

    row() and batch() move these tensors themselves, because the hooks of a decoder that is spread over devices do not.
    """

    borders: tuple[int, ...]
    places: torch.Tensor | None = None
    tokens: torch.Tensor | None = None

    @classmethod
    def of(cls, real: np.ndarray) -> Segments:
        """The segments of a padded batch. real: [B, L] bool, False at padding."""
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


@dataclass(frozen=True)
class Unpacked:
    """A packed row as a batch that is padded on the right, for a layer that cannot keep its samples apart.

    Args:
        segments: the segments of that batch. real: [B, L] int64, 0 at padding.
    """

    segments: Segments
    real: torch.Tensor

    @classmethod
    def of(cls, borders: Sequence[int], device: torch.device) -> Unpacked:
        """From the borders of the row's samples: 0, ..., T."""
        lengths = np.diff(borders)
        real = np.arange(lengths.max())[None] < lengths[:, None]
        return cls(Segments.of(real).to(device), torch.from_numpy(real).long().to(device))

    def batch(self, row: torch.Tensor) -> torch.Tensor:
        """[1, T, C] -> [B, L, C], with 0 at padding."""
        return self.segments.batch(row[:, None], len(self.real))[:, 0]

    def row(self, batch: torch.Tensor) -> torch.Tensor:
        """[B, L, C] -> [1, T, C]."""
        return self.segments.row(batch[:, None])[:, 0]


def borders_of(real: np.ndarray) -> tuple[int, ...]:
    """Where the samples begin and end in one row of all real tokens. real: [B, L] bool."""
    return (0, *np.cumsum(real.sum(axis=1)).tolist())
