"""Where everything stands before and after each stage: worked out on the host, before any feature exists.

How many tokens each frame keeps follows from its size alone, and so does every shape and every index of the compressed
prompt, at every stage. A stage is what happens before the decoder, or on entry of a decoder layer: some steps, one
after the other, each a Round, and then the gathering of text and kept tokens into place.

NumPy arrays stay on the host; what is needed on the device is a tensor, and travels with .to(device).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ppe_npu.engine.rounds import Movable, Round, as_tensor, round_of
from ppe_npu.engine.segments import Segments
from ppe_npu.engine.shown import Prompts, tells_samples_apart
from ppe_npu.engine.spans import PromptLayout
from ppe_npu.methods.base import Method


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
    def of(cls, layout: PromptLayout) -> Arrangement:
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

    def places_of(self, columns: np.ndarray, length: int) -> np.ndarray:
        """[B] the place in the flattened batch of a text token of each prompt.

        Args:
            columns: [B] where they stood in the prompts, each `length` columns long.
        """
        packed = len(columns) != len(self.real)
        origins = self.origins if packed else self.origins + np.arange(len(columns))[:, None] * length
        wanted = np.arange(len(columns)) * length + columns
        found = np.flatnonzero(self.text & np.isin(origins, wanted))
        place = np.full(len(columns) * length, -1)
        place[origins.reshape(-1)[found]] = found
        return place[wanted]

    @property
    def padded(self) -> bool:
        return not self.real.all()

    @property
    def visual_tokens(self) -> int:
        return sum(cell.tokens for cell in self.cells)


@dataclass(frozen=True)
class Stage(Movable):
    """What happens before the decoder, or on entry of one of its layers.

    Its rows are the text tokens, then what its last round keeps (without a round: the tokens that it is given), then
    one of padding.

    Args:
        layer: the decoder layer; None: before the decoder.
        text: [T] index of each text token in the flattened batch before it.
        rounds: its steps.
        rows: [B, L] which row stands where.
        sources: [B, L] for each place the column before the stage that it stands for; 0 at padding.
        real: [B, L] bool, False at padding, of what it leaves.
        after: the arrangement that it leaves.
        borders: of a packed batch (see packing.py) where its samples begin and end in the one row: 0, ..., L.
        numbers: of a packed batch [1, L] the place of each token in its sample; else None.
        segments: of what it leaves, the samples as attention may see them; None for a batch without padding.
        prompts: how the samples stand before it, where a method looks at its own sample's text or last token.
        as_given: whether every column of the prompt stays where it is, padding too, which goes along as text does.
    """

    layer: int | None
    text: torch.Tensor
    rounds: tuple[Round, ...]
    rows: torch.Tensor
    sources: torch.Tensor
    real: torch.Tensor
    after: Arrangement
    borders: tuple[int, ...] | None = None
    numbers: torch.Tensor | None = None
    segments: Segments | None = None
    prompts: Prompts | None = None
    as_given: bool = False


@dataclass(frozen=True)
class Piece:
    """A run of visual tokens and what has become of it.

    Args:
        sample, start, tokens: where it stood before the stage. span: index of its span in the prompt's layout.
        first: index of its first token among those that the stage is given.
        cells: of each cell that it has become the indices of its tokens among those that the last round kept.
    """

    sample: int
    start: int
    tokens: int
    span: int
    first: int
    cells: tuple[np.ndarray, ...]


def lay_out(
    layout: PromptLayout, stages: Sequence[tuple[int | None, tuple[Method, ...]]], left: bool = True
) -> tuple[Stage, ...]:
    """All stages of a batch of prompts.

    Args:
        stages: as CompressionConfig.stages.
        left: whether padding goes to the left, so that the last place of every sample is its last token, as generation
            needs it.
    """
    # The tokens of the first stage are the vision tower's features; of a later one, the flattened batch.
    starts = [span.feature + t * span.frame_tokens for span in layout.spans for t in range(span.grid[0])]
    before, count, out = Arrangement.of(layout), int(layout.visual.sum()), []
    for layer, methods in stages:
        out.append(stage_of(before, layer, methods, starts, count, left))
        before = out[-1].after
        width = before.real.shape[1]
        starts, count = [cell.sample * width + cell.start for cell in before.cells], before.real.size
    return tuple(out)


def left_as_given(layout: PromptLayout) -> tuple[Stage, ...]:
    """The one stage of a batch in which nothing is merged and nothing moved: what is text for it includes padding."""
    arrangement, columns = Arrangement.of(layout), np.arange(layout.real.size).reshape(layout.real.shape)
    text = np.flatnonzero(~layout.visual)
    rows = np.empty(layout.real.size, dtype=np.int64)
    rows[text] = np.arange(len(text))
    for span in layout.spans:
        first = columns[span.sample, span.start]
        rows[first : first + span.tokens] = len(text) + span.feature + np.arange(span.tokens)
    segments = Segments.of(layout.real) if arrangement.padded else None
    tensors = map(as_tensor, (rows.reshape(columns.shape), arrangement.origins.copy(), layout.real))
    return (Stage(None, as_tensor(text), (), *tensors, arrangement, segments=segments, as_given=True),)


def stage_of(
    before: Arrangement,
    layer: int | None,
    methods: Sequence[Method],
    starts: Sequence[int],
    count: int,
    left: bool,
) -> Stage:
    """One stage. starts: index of each cell's first token among the `count` tokens that the stage is given."""
    pieces = [
        Piece(cell.sample, cell.start, cell.tokens, cell.span, start, (start + np.arange(cell.tokens),))
        for start, cell in zip(starts, before.cells)
    ]
    rounds = []
    for method in methods:
        made, pieces, count = round_of(method, pieces, count)
        rounds += [] if made is None else [made]
    text = np.flatnonzero(before.text.reshape(-1))
    empty = len(text) + count
    samples = [_gathered(before, sample, pieces) for sample in range(len(before.real))]
    length = max(len(rows) for rows, _, _ in samples)
    rows = np.full((len(samples), length), empty)
    sources = np.zeros((len(samples), length), dtype=np.int64)
    cells: list[Cell] = []
    for sample, (own_rows, own_sources, own_cells) in enumerate(samples):
        first = length - len(own_rows) if left else 0
        place = slice(first, first + len(own_rows))
        rows[sample, place], sources[sample, place] = own_rows, own_sources
        cells += [Cell(sample, first + start, tokens, span) for start, tokens, span in own_cells]
    real = rows != empty
    origins = np.where(real, np.take_along_axis(before.origins, sources, axis=1), 0)
    after, segments = Arrangement(real, tuple(cells), origins), None if real.all() else Segments.of(real)
    tensors = map(as_tensor, (rows, sources, real))
    return Stage(layer, as_tensor(text), tuple(rounds), *tensors, after, segments=segments)


def with_prompts(
    stages: Sequence[Stage],
    steps: Sequence[tuple[int | None, tuple[Method, ...]]],
    layout: PromptLayout,
    labels: torch.Tensor | None,
) -> tuple[Stage, ...]:
    """The stages with how the samples stand before each, where one of its methods needs to know.

    Args:
        steps: as CompressionConfig.stages.
        labels: [B, S] of training: a prompt ends where its answer begins; None: at its last token.
    """
    if not tells_samples_apart(itertools.chain(*(methods for _, methods in steps))):
        return tuple(stages)
    answered = labels is not None and labels.shape == layout.real.shape
    asked = layout.asked(labels.cpu().numpy()) if answered else np.full(len(layout.real), -1)
    before, borders, out = Arrangement.of(layout), None, []
    for stage, (_, methods) in zip(stages, steps):
        if tells_samples_apart(methods):
            ends = np.where(asked < 0, -1, before.places_of(asked, layout.real.shape[1]))
            stage = dataclasses.replace(stage, prompts=Prompts.of(before.real, borders, stage.text.numpy(), ends))
        out.append(stage)
        before, borders = stage.after, stage.borders
    return tuple(out)


def _gathered(before: Arrangement, sample: int, pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray, list]:
    """What one sample becomes, without padding: its rows, their sources, and (start, tokens, span) of its cells.

    Visual rows come after the batch's text rows.
    """
    text, texts = before.text, int(before.text.sum())
    text_row = np.cumsum(text.reshape(-1)).reshape(text.shape)[sample] - 1
    rows, sources, cells, at, place = [], [], [], 0, 0
    for piece in [*(piece for piece in pieces if piece.sample == sample), None]:
        end = text.shape[1] if piece is None else piece.start
        kept = at + np.flatnonzero(text[sample, at:end])
        rows.append(text_row[kept])
        sources.append(kept)
        place += len(kept)
        if piece is not None:
            tokens = np.concatenate(piece.cells)
            rows.append(texts + tokens)
            # A piece's tokens may be more than before (several ratios are all kept): the last stand for its last.
            sources.append(piece.start + np.minimum(np.arange(len(tokens)), piece.tokens - 1))
            for cell in piece.cells:
                cells.append((place, len(cell), piece.span))
                place += len(cell)
            at = piece.start + piece.tokens
    return np.concatenate(rows), np.concatenate(sources), cells
