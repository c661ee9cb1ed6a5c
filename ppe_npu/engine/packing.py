"""The samples of a batch side by side: padded to one length, or packed.

A packed batch is one row: every sample's tokens follow each other without padding, and attend to their own sample only.
The whole decoder has it so: for training, where no cache is kept.
"""

import itertools
from collections.abc import Sequence

import numpy as np

Rows = Sequence[tuple[np.ndarray, np.ndarray]]  # of each sample [l] which row stands where, and [l] their sources
Firsts = list[tuple[int, int]]  # of each sample in which row it stands, and from which place on


def padded_rows(samples: Rows, empty: int, left: bool) -> tuple[np.ndarray, np.ndarray, Firsts]:
    """[B, L] rows and sources of samples that are padded with the row `empty`, on the left or on the right."""
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
    """[1, T] rows and sources of a packed batch, and where its samples begin and end: 0, ..., T.

    Args:
        samples: the batch's, or its one row where it is packed already; sources rise, or stay.
        width: columns of what the sources point into.
        borders: of the row that is packed already.
    """
    sources = np.concatenate([sample * width + own for sample, (_, own) in enumerate(samples)])
    ends = np.cumsum([0, *(len(own) for own, _ in samples)]).tolist()
    cuts = ends if borders is None else np.searchsorted(sources, borders).tolist()
    rows = np.concatenate([own for own, _ in samples])
    return rows[None], sources[None], [(0, first) for first in ends[:-1]], tuple(cuts)


def numbers(borders: Sequence[int]) -> np.ndarray:
    """[1, T] the place of each token in its sample."""
    return np.concatenate([np.arange(end - start) for start, end in itertools.pairwise(borders)])[None]
