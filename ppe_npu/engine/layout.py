"""Where everything stands before and after each merge: worked out on the host, before any feature exists.

How many tokens each frame keeps follows from its size alone, and so does every shape and every index of the compressed
prompt, at every stage. A stage is one merge: before the LLM, or on entry of a decoder layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ppe_npu.engine.spans import PromptLayout


@dataclass(frozen=True)
class Cell:
    """A run of visual tokens that is clustered by itself: a frame, or an event of a video.

    Args:
        sample: row of the batch. start: index of its first token in that row. tokens: how many it has.
        span: index of its span in the prompt's layout.
    """

    sample: int
    start: int
    tokens: int
    span: int


@dataclass(frozen=True)
class Arrangement:
    """Where tokens stand in a batch at some stage.

    Args:
        real: [B, L] bool, False at padding.
        cells: every cell, by sample and then by place.
        origins: [B, L] for each place a column of the prompt as it was given: itself for text, one of its cell's for a
            visual token, with the same neighbours in order; 0 at padding. In a packed batch an index in the flattened
            prompts.
    """

    real: np.ndarray
    cells: tuple[Cell, ...]
    origins: np.ndarray

    @classmethod
    def of(cls, layout: PromptLayout) -> "Arrangement":
        """Before any merge."""
        cells = [
            Cell(span.sample, span.start + t * span.frame_tokens, span.frame_tokens, number)
            for number, span in enumerate(layout.spans)
            for t in range(span.grid[0])
        ]
        samples, length = layout.real.shape
        return cls(layout.real, tuple(cells), np.broadcast_to(np.arange(length), (samples, length)))

    @cached_property
    def text(self) -> np.ndarray:
        """[B, L] bool, True at text."""
        text = self.real.copy()
        for cell in self.cells:
            text[cell.sample, cell.start : cell.start + cell.tokens] = False
        return text

    @property
    def padded(self) -> bool:
        return not self.real.all()

    @property
    def visual_tokens(self) -> int:
        return sum(cell.tokens for cell in self.cells)


@dataclass(frozen=True)
class Groups:
    """A Grouping of a bucket's cells that is known to the host: its labels [F, N] and representatives [F, M]."""

    labels: np.ndarray
    representatives: np.ndarray


@dataclass(frozen=True)
class Bucket:
    """Cells of like size, clustered together, by one ratio after the other.

    Args:
        tokens: [F, N] index of each token among those that are merged, 0 where a cell has no such token.
        valid: [F, N] bool, or None if every cell has N tokens.
        budgets: [ratios, F] tokens that each ratio keeps of each cell.
        groups: of each ratio, where the method needs no features.
    """

    tokens: np.ndarray
    valid: np.ndarray | None
    budgets: np.ndarray
    groups: tuple[Groups, ...] = ()

    @property
    def first(self) -> int | None:
        """The index of the first token, where all of them follow each other in order."""
        tokens = self.tokens.reshape(-1)
        follow = self.valid is None and (tokens == tokens[0] + np.arange(len(tokens))).all()
        return int(tokens[0]) if follow else None

    @cached_property
    def kept(self) -> np.ndarray:
        """[G] index of each kept token in [F, all ratios' largest budgets], flattened: a cell's tokens of the first
        ratio, of the second, ..., then those of the next cell."""
        slots = [np.arange(budgets.max()) < budgets[:, None] for budgets in self.budgets]
        return np.flatnonzero(np.concatenate(slots, axis=1).reshape(-1))


@dataclass(frozen=True)
class Video:
    """A video whose frames are grouped into events.

    Args:
        first: index of its first token among those that are merged. frames, frame_tokens: its size there.
        kept: [frames, m] index of each frame's merged tokens among all that the buckets keep.
        events: how many events. tokens: how many tokens they keep in all.
    """

    first: int
    frames: int
    frame_tokens: int
    kept: np.ndarray
    events: int
    tokens: int


@dataclass(frozen=True)
class EventLayout:
    """The events of a batch's videos, as cells of what their frames kept.

    Args:
        buckets: events of like size. order: [G] which of the buckets' kept tokens stands where: by video, event after
            event.
    """

    buckets: tuple[Bucket, ...]
    order: np.ndarray


@dataclass(frozen=True)
class StageLayout:
    """One merge of a batch. Rows: the text tokens, what the buckets keep, what the events keep, and one of padding.

    Args:
        text: [T] index of each text token in the flattened batch before it.
        buckets: the cells to cluster.
        videos: the videos whose frames are grouped into events.
        rows: [B, L] which row stands where.
        sources: [B, L] for each place the column before the merge that it stands for; 0 at padding.
        after: the arrangement that it leaves.
        borders: of a packed batch (see packing.py) where its samples begin and end in the one row: 0, ..., L.
        events: the videos' events, where the method needs no features.
    """

    text: np.ndarray
    buckets: tuple[Bucket, ...]
    videos: tuple[Video, ...]
    rows: np.ndarray
    sources: np.ndarray
    after: Arrangement
    borders: tuple[int, ...] | None = None
    events: EventLayout | None = None


@dataclass(frozen=True)
class Budget:
    """What a stage keeps.

    Args:
        cell: tokens of a cell -> how many each ratio keeps.
        events: frames of a video -> how many events, or None.
        event_tokens: (frames, merged tokens of a frame) -> tokens of all its events.
    """

    cell: Callable[[int], tuple[int, ...]]
    events: Callable[[int], int | None] = lambda frames: None
    event_tokens: Callable[[int, int], int] | None = None


def stage_layout(
    before: Arrangement, budget: Budget, starts: Sequence[int] | None = None, left: bool = True
) -> StageLayout:
    """Work out one merge.

    Args:
        starts: index of each cell's first token among those that are merged; None: its place in the flattened batch.
        left: whether padding goes to the left, so that the last place of every sample is its last token, as generation
            needs it.
    """
    width = before.real.shape[1]
    if starts is None:
        starts = [cell.sample * width + cell.start for cell in before.cells]
    tokens = [start + np.arange(cell.tokens) for start, cell in zip(starts, before.cells)]
    buckets, kept = buckets_of(tokens, [budget.cell(cell.tokens) for cell in before.cells])
    merged = sum(int(bucket.budgets.sum()) for bucket in buckets)
    videos, runs = _videos(before.cells, starts, kept, budget, merged)
    empty = int(before.text.sum()) + merged + sum(video.tokens for video in videos)
    pieces = [_merge_sample(before, sample, runs) for sample in range(len(before.real))]
    length = max(len(piece.rows) for piece in pieces)
    rows = np.full((len(pieces), length), empty)
    sources = np.zeros((len(pieces), length), dtype=np.int64)
    cells = []
    for sample, piece in enumerate(pieces):
        first = length - len(piece.rows) if left else 0
        place = slice(first, first + len(piece.rows))
        rows[sample, place], sources[sample, place] = piece.rows, piece.sources
        cells += [Cell(sample, first + start, tokens, span) for start, tokens, span in piece.cells]
    real = rows != empty
    origins = np.where(real, np.take_along_axis(before.origins, sources, axis=1), 0)
    text = np.flatnonzero(before.text.reshape(-1))
    return StageLayout(text, buckets, videos, rows, sources, Arrangement(real, tuple(cells), origins))


@dataclass(frozen=True)
class _Run:
    """Cells that follow each other: `tokens` before them, the rows that stay, and the cells that these make."""

    sample: int
    start: int
    tokens: int
    rows: np.ndarray
    cells: tuple[tuple[int, int], ...]  # (tokens, span) of each


@dataclass(frozen=True)
class _Piece:
    rows: np.ndarray
    sources: np.ndarray
    cells: list[tuple[int, int, int]]  # (start, tokens, span)


def _merge_sample(before: Arrangement, sample: int, runs: Sequence[_Run]) -> _Piece:
    """What one sample becomes, without padding. Visual rows come after the batch's text rows."""
    text, texts = before.text, int(before.text.sum())
    text_row = np.cumsum(text.reshape(-1)).reshape(text.shape)[sample] - 1
    rows, sources, cells, at, place = [], [], [], 0, 0
    for run in [*(run for run in runs if run.sample == sample), None]:
        end = text.shape[1] if run is None else run.start
        kept = at + np.flatnonzero(text[sample, at:end])
        rows.append(text_row[kept])
        sources.append(kept)
        place += len(kept)
        if run is not None:
            rows.append(texts + run.rows)
            # A run's tokens may be more than before (several ratios are all kept): the last stand for its last.
            sources.append(run.start + np.minimum(np.arange(len(run.rows)), run.tokens - 1))
            for tokens, span in run.cells:
                cells.append((place, tokens, span))
                place += tokens
            at = run.start + run.tokens
    return _Piece(np.concatenate(rows), np.concatenate(sources), cells)


def buckets_of(
    tokens: Sequence[np.ndarray], budgets: Sequence[tuple[int, ...]]
) -> tuple[tuple[Bucket, ...], list[np.ndarray]]:
    """Cells in buckets of like size, and for every cell the index of its kept tokens among all that are kept.

    A bucket holds sizes between two powers of two, so that neither padding (at most half) nor the number of buckets
    (at most log2 of the largest cell) grows with the batch.

    Args:
        tokens: of each cell the indices of its tokens among those that are merged.
        budgets: of each cell how many each ratio keeps.
    """
    classes: dict[int, list[int]] = {}
    for number, cell in enumerate(tokens):
        classes.setdefault((len(cell) - 1).bit_length(), []).append(number)
    kept: list[np.ndarray] = [np.zeros(0, np.int64)] * len(tokens)
    buckets, at = [], 0
    for size in sorted(classes):
        numbers = classes[size]
        counts = np.array([len(tokens[n]) for n in numbers])
        valid = np.arange(counts.max()) < counts[:, None]
        index = np.zeros(valid.shape, np.int64)
        index[valid] = np.concatenate([tokens[n] for n in numbers])
        wanted = np.array([budgets[n] for n in numbers]).T
        buckets.append(Bucket(index, None if valid.all() else valid, wanted))
        for number, count in zip(numbers, wanted.sum(axis=0)):
            kept[number] = np.arange(at, at + count)
            at += int(count)
    return tuple(buckets), kept


def _videos(
    cells: Sequence[Cell], starts: Sequence[int], kept: list[np.ndarray], budget: Budget, merged: int
) -> tuple[tuple[Video, ...], list[_Run]]:
    """The videos that are grouped into events, and the runs of all cells: one a cell, one a video of events."""
    videos, runs, number = [], [], 0
    while number < len(cells):
        cell = cells[number]
        frames = next((n for n, other in enumerate(cells[number:]) if other.span != cell.span), len(cells) - number)
        events = budget.events(frames)
        if events is None:
            runs.append(_Run(cell.sample, cell.start, cell.tokens, kept[number], ((len(kept[number]), cell.span),)))
            number += 1
            continue
        tokens = budget.event_tokens(frames, len(kept[number]))
        index = np.stack(kept[number : number + frames])
        videos.append(Video(starts[number], frames, cell.tokens, index, events, tokens))
        # With a share of its own for each event (see events.py) the cells after it differ; then no stage follows.
        after = ((tokens // events, cell.span),) * events if tokens % events == 0 else ((tokens, cell.span),)
        rows = merged + np.arange(tokens)
        runs.append(_Run(cell.sample, cell.start, frames * cell.tokens, rows, after))
        merged += tokens
        number += frames
    return tuple(videos), runs
