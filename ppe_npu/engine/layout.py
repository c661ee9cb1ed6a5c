"""Where every token is before and after each stage: computed on the host, usually before any feature exists.

How many tokens each frame keeps follows from its size alone, and so does every shape and every index of the compressed
prompt, at every stage. Methods with late counts are the exception: late.py lays out their stages with the same
functions. A stage is what happens before the decoder, or on entry of a decoder layer: its steps are taken one after the
other, each as a Round, and then text and kept tokens are gathered into place.

NumPy arrays stay on the host; what the device needs is a tensor and moves with .to(device).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ppe_npu.engine.left_alone import later_places
from ppe_npu.engine.packing import Segments, numbers, packed_rows, padded_rows
from ppe_npu.engine.pixels import Chosen
from ppe_npu.engine.rounds import Movable, Round, as_tensor, depends_on_features, round_of
from ppe_npu.engine.shown import OF_PROMPTS, TEXT, Prompts
from ppe_npu.engine.spans import PromptLayout
from ppe_npu.methods.base import Method


@dataclass(frozen=True)
class Cell:
    """A run of visual tokens that is grouped by itself: a frame, a whole image or video, or a segment of a video.

    Args:
        sample: row of the batch. start: index of its first token in that row. tokens: how many it has.
        span: index of its span in the prompt's layout. video: index of the first span of its image or video.
        joint: whether later steps treat all cells of its image or video as one.
        frames, frame_tokens: how many frames its image or video has in the vision tower, and how many tokens each has:
            upper bounds for the frames from the cell's first to its last, and for its tokens of one frame.
    """

    sample: int
    start: int
    tokens: int
    span: int
    video: int
    joint: bool = False
    frames: int = 1
    frame_tokens: int = 1


@dataclass(frozen=True)
class Arrangement:
    """Where the tokens of a batch are at some stage.

    Args:
        real: [B, L] bool, False at padding. text: [B, L] bool, True at text.
        cells: every cell, by sample and then by place.
        origins: [B, L] for each place a column of the original prompt: its own for text, one of its image's or video's
            for a visual token; 0 at padding. Columns never fall along a sample. In a packed batch an index in the
            flattened prompts.
    """

    real: np.ndarray
    text: np.ndarray
    cells: tuple[Cell, ...]
    origins: np.ndarray

    @classmethod
    def of(cls, layout: PromptLayout) -> Arrangement:
        """The arrangement before any merge."""
        first: dict[tuple[str, int], int] = {}
        frames: dict[tuple[str, int], int] = {}  # of each image or video: text may separate its frames
        for span in layout.spans:
            frames[span.modality, span.source] = frames.get((span.modality, span.source), 0) + span.grid[0]
        cells = []
        for number, span in enumerate(layout.spans):
            video = first.setdefault((span.modality, span.source), number)
            starts = [span.start + t * span.frame_tokens for t in range(span.grid[0])]
            count, tokens = frames[span.modality, span.source], span.frame_tokens
            cells += [
                Cell(span.sample, start, tokens, number, video, frames=count, frame_tokens=tokens) for start in starts
            ]
        samples, length = layout.real.shape
        columns = np.broadcast_to(np.arange(length), (samples, length))
        return cls(layout.real, layout.real & ~layout.visual, tuple(cells), columns)

    def places_of(self, columns: np.ndarray, length: int) -> np.ndarray:
        """[B] the place in the flattened batch of one text token of each prompt.

        Args:
            columns: [B] the token's column in its original prompt. length: how many columns a prompt has.
        """
        packed = len(columns) != len(self.real)
        origins = self.origins if packed else self.origins + np.arange(len(columns))[:, None] * length
        wanted = np.arange(len(columns)) * length + columns
        found = np.flatnonzero(self.text & np.isin(origins, wanted))
        place = np.full(len(columns) * length, -1)
        place[origins.reshape(-1)[found]] = found
        return place[wanted]

    @cached_property
    def padded(self) -> bool:
        return not self.real.all()

    @property
    def visual_tokens(self) -> int:
        return sum(cell.tokens for cell in self.cells)


@dataclass(frozen=True)
class Stage(Movable):
    """What happens before the decoder, or on entry of one of its layers.

    Its rows are the text tokens, then what its last round keeps (without a round: the tokens that it is given), then
    one row of padding.

    Args:
        layer: the decoder layer; None: before the decoder.
        text: [T] index of each text token in the flattened batch before the stage.
        rounds: the rounds of its steps.
        rows: [B, L] index of the row at each place after the stage.
        sources: [B, L] the column before the stage that each place stands for; 0 at padding.
        real: [B, L] bool, False at padding, after the stage.
        after: the arrangement after the stage.
        borders: in a packed batch (see packing.py) where the samples begin and end in its one row: 0, ..., L.
        numbers: in a packed batch [1, L] the index of each token in its sample; else None.
        segments: the samples after the stage as segments for attention; None if the batch is neither padded nor packed.
        prompts: where the samples are before the stage, if a method looks at its own sample's text or last token.
        as_given: whether every column of the prompt stays in its place, padding included, which is treated as text.
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
    """A run of visual tokens, and the cells that the stage's rounds so far have left of it.

    Args:
        before: the cell that it was before the stage.
        first: index of its first token among those that the stage is given.
        cells: for each cell that is left, the indices of its tokens (at least one) among those last kept.
    """

    before: Cell
    first: int
    cells: tuple[np.ndarray, ...]

    def left_with(self, cells: Sequence[np.ndarray]) -> Piece:
        """The piece after a round: `cells` without those that have no tokens."""
        return Piece(self.before, self.first, tuple(cell for cell in cells if len(cell)))


@dataclass(frozen=True)
class Standing:
    """The tokens that a stage is given.

    Args:
        before: where they are.
        starts: index of each cell's first token among them. count: how many tokens there are.
        sizes: how many tokens each cell has, if a step at the pixels has dropped some; None: all.
        borders: in a packed batch, once it is one row, where the samples begin and end in that row.
        asked: [B] in training the column of the original prompt at which each prompt ends, before its answer; -1: at
            its last token. columns: how many columns an original prompt has.
    """

    before: Arrangement
    starts: tuple[int, ...]
    count: int
    borders: tuple[int, ...] | None
    asked: np.ndarray
    columns: int
    sizes: tuple[int, ...] | None = None

    @classmethod
    def of(cls, layout: PromptLayout, labels: torch.Tensor | None = None, chosen: Chosen | None = None) -> Standing:
        """What the first stage is given: visual features. labels: [B, S] in training. chosen: those that are kept."""
        starts = [span.feature + t * span.frame_tokens for span in layout.spans for t in range(span.grid[0])]
        if labels is not None and labels.shape == layout.real.shape:
            asked = layout.question_columns(labels.cpu().numpy())
        else:
            asked = np.full(len(layout.real), -1)
        before, features, sizes = Arrangement.of(layout), int(layout.visual.sum()), None
        if chosen is not None:
            sizes = tuple(chosen.counts(starts, [cell.tokens for cell in before.cells]).tolist())
            starts, features = chosen.counts([0] * len(starts), starts).tolist(), chosen.total
        return cls(before, tuple(starts), features, None, asked, layout.real.shape[1], sizes)

    def after(self, stage: Stage) -> Standing:
        """What the next stage is given: the flattened batch after `stage`."""
        width = stage.after.real.shape[1]
        starts = tuple(cell.sample * width + cell.start for cell in stage.after.cells)
        count, borders = stage.after.real.size, stage.borders
        return replace(self, before=stage.after, starts=starts, count=count, borders=borders, sizes=None)

    @property
    def text(self) -> torch.Tensor:
        """[T] index of each text token in the flattened batch."""
        return as_tensor(np.flatnonzero(self.before.text.reshape(-1)))

    def prompts(self, methods: Sequence[Method]) -> Prompts | None:
        """Where the samples are, if one of these methods needs to know; else None."""
        if not any(method.needs & OF_PROMPTS for method in methods):
            return None
        ends = np.where(self.asked < 0, -1, self.before.places_of(self.asked, self.columns))
        others = any(method.first_only and method.needs & TEXT for method in methods)
        later = later_places(self.before) if others else None
        return Prompts.of(self.before.real, self.borders, self.text.numpy(), ends, later)

    @property
    def pieces(self) -> list[Piece]:
        sizes = self.sizes or [cell.tokens for cell in self.before.cells]
        index = np.arange(self.count)
        return [
            Piece(cell, start, (index[start : start + size],))
            for start, size, cell in zip(self.starts, sizes, self.before.cells)
        ]


Steps = Sequence[tuple[int | None, tuple[Method, ...]]]  # as CompressionConfig.stages


def lay_out(
    standing: Standing, stages: Steps, left: bool = True, packed: bool = False
) -> tuple[tuple[Stage, ...], Standing]:
    """The stages of a batch of prompts, up to the first whose counts depend on the features.

    Args:
        standing: the tokens that the first stage is given.
        left: whether padding goes to the left, so that the last place of every sample is its last token, as generation
            requires.
        packed: lay the batch out as one row of samples, without padding.

    Returns:
        the stages, and the tokens that the first stage after them is given, if there is one.
    """
    out: list[Stage] = []
    for layer, methods in stages:
        standing = standing.after(out[-1]) if out else standing
        if any(depends_on_features(method, standing.before.cells) for method in methods):
            break
        rounds, pieces, count = [], standing.pieces, standing.count
        for method in methods:
            made, pieces, count = round_of(method, pieces, count)
            rounds += [] if made is None else [made]
        stage = stage_of(standing, layer, rounds, pieces, count, left, packed)
        out.append(replace(stage, prompts=standing.prompts(methods)))
    return tuple(out), standing


def left_as_given(layout: PromptLayout) -> tuple[Stage, ...]:
    """The one stage of a batch in which nothing is merged or moved; its text includes the padding."""
    arrangement, columns = Arrangement.of(layout), np.arange(layout.real.size).reshape(layout.real.shape)
    text = np.flatnonzero(~layout.visual)
    rows = np.empty(layout.real.size, dtype=np.int64)
    rows[text] = np.arange(len(text))
    for span in layout.spans:
        first = columns[span.sample, span.start]
        rows[first : first + span.tokens] = len(text) + span.feature + np.arange(span.tokens)
    segments = Segments.of(layout.real) if arrangement.padded else None
    index, sources, real = map(as_tensor, (rows.reshape(columns.shape), arrangement.origins.copy(), layout.real))
    stage = Stage(None, as_tensor(text), (), index, sources, real, arrangement, segments=segments, as_given=True)
    return (stage,)


def stage_of(
    standing: Standing,
    layer: int | None,
    rounds: Sequence[Round],
    pieces: Sequence[Piece],
    count: int,
    left: bool,
    packed: bool,
) -> Stage:
    """A stage, from its rounds and from the pieces after the last of them, which keeps `count` tokens."""
    before, text, borders = standing.before, standing.text, None
    samples = _samples_after(before, pieces)
    origins, empty = before.origins, len(text) + count
    if packed:
        width = before.real.shape[1]
        origins = (width * np.arange(len(origins))[:, None] + origins).reshape(1, -1)
        rows, sources, firsts, borders = packed_rows([own[:2] for own in samples], width, standing.borders)
    else:
        rows, sources, firsts = padded_rows([own[:2] for own in samples], empty, left)
    cells = [
        Cell(row, first + start, tokens, was.span, was.video, was.joint, was.frames, was.frame_tokens)
        for (row, first), (_, _, own) in zip(firsts, samples)
        for start, tokens, was in own
    ]
    real = rows != empty
    origins = np.where(real, np.take_along_axis(origins, sources, axis=1), 0)
    after = Arrangement(real, rows < len(text), tuple(cells), origins)
    segments = Segments(borders) if borders is not None else Segments.of(real) if after.padded else None
    numbered = None if borders is None else as_tensor(numbers(borders))
    index, columns, present = map(as_tensor, (rows, sources, real))
    return Stage(layer, text, tuple(rounds), index, columns, present, after, borders, numbered, segments)


def _samples_after(before: Arrangement, pieces: Sequence[Piece]) -> list[tuple[np.ndarray, np.ndarray, list]]:
    """The samples after a stage, without padding: the rows of each, the columns that these stand for, and for each of
    its cells (start, tokens, the cell that it was before). Visual rows come after all text rows of the batch."""
    text, texts = before.text, int(before.text.sum())
    text_rows = np.cumsum(text).reshape(text.shape) - 1
    own: list[list[Piece]] = [[] for _ in text]
    for piece in sorted(pieces, key=lambda piece: piece.before.start):
        own[piece.before.sample].append(piece)
    return [_sample_after(*sample, texts) for sample in zip(text, text_rows, own)]


def _sample_after(
    text: np.ndarray, text_rows: np.ndarray, pieces: Sequence[Piece], texts: int
) -> tuple[np.ndarray, np.ndarray, list]:
    """One of _samples_after(). text: [L] bool. text_rows: [L] the row of each text token. texts: how many text
    tokens the batch has."""
    rows, sources, cells, at, place = [], [], [], 0, 0
    every = np.arange(len(text))
    for piece in [*pieces, None]:
        end = len(text) if piece is None else piece.before.start
        if end > at:
            kept = every[at:end][text[at:end]]
            rows.append(text_rows[kept] - texts)
            sources.append(kept)
            place += len(kept)
        if piece is not None:
            start, at = piece.before.start, piece.before.start + piece.before.tokens
            tokens = sum(map(len, piece.cells))
            sources.append(every[start : min(start + tokens, at)])
            if tokens > piece.before.tokens:  # several ratios may do that: the surplus stands for the last column
                sources.append(np.full(tokens - piece.before.tokens, at - 1))
            for cell in piece.cells:
                rows.append(cell)
                cells.append((place, len(cell), piece.before))
                place += len(cell)
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *rows]) + texts, np.concatenate([empty, *sources]), cells
