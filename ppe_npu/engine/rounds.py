"""One step's work on a batch: which tokens make which cells, and how many tokens each cell keeps.

A Round takes the R tokens that a stage is given, or that the round before it kept, and keeps G of them. Its cells are
gathered in buckets of similar size, so that a method is called once for many cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ppe_npu.engine.left_alone import as_they_are, left_alone
from ppe_npu.methods.base import Method
from ppe_npu.methods.grouping import Grouping

if TYPE_CHECKING:
    from ppe_npu.engine.layout import Cell, Piece


class Movable:
    """A dataclass whose tensors can be moved to a device. NumPy arrays, numbers and methods stay as they are."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # set by subclasses, all of which are dataclasses

    def to(self, device: torch.device):
        """A copy with its tensors on another device."""
        values = {field.name: _moved(getattr(self, field.name), device) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **values)


def _moved(part, device: torch.device):
    if isinstance(part, torch.Tensor):
        return upload(part, device)
    if isinstance(part, tuple):
        return tuple(_moved(entry, device) for entry in part)
    return part.to(device) if hasattr(part, "to") else part


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. Uploads make the host wait for the device's queue: do them before the vision tower."""
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Bucket(Movable):
    """Cells of similar size.

    Args:
        tokens: [F, N] int64, index of each token among the round's tokens; 0 where a cell has no such token.
        valid: [F, N] bool, or None if every cell has N tokens.
        num_kept: for each level (usually one, see Method.levels) [F] int64, how many tokens each cell keeps.
        most: for each level the largest number of tokens that a cell keeps.
        kept: [G] index of each kept token in the flattened [F, sum of `most`]: a cell's tokens of the first level, of
            the second, ..., then those of the next cell. None: all of them.
        first: the index of the first token if the tokens are consecutive and in order; else None.
        cells: [F] on the host, the index of each cell among the round's cells.
        whole: whether every cell keeps all its tokens.
        least: for each level the smallest number of tokens that a cell keeps.
        frames, frame_tokens: as in View, if the cells are whole images or videos.
        groupings: one for each level, once they are known.
    """

    tokens: torch.Tensor
    valid: torch.Tensor | None
    num_kept: tuple[torch.Tensor, ...]
    most: tuple[int, ...]
    kept: torch.Tensor | None
    first: int | None
    cells: np.ndarray
    whole: bool = False
    least: tuple[int, ...] = (1,)
    frames: int | None = None
    frame_tokens: int | None = None
    groupings: tuple[Grouping, ...] = ()

    @classmethod
    def of(
        cls,
        tokens: np.ndarray,
        valid: np.ndarray | None,
        num_kept: np.ndarray,
        cells: np.ndarray,
        frames: np.ndarray | None = None,
    ) -> Bucket:
        """From host arrays; num_kept: [levels, F]; frames: [F, 2], as frames_of() returns them."""
        slots = np.concatenate([np.arange(row.max()) < row[:, None] for row in num_kept], axis=1)
        flat = tokens.reshape(-1)
        follow = valid is None and (flat == flat[0] + np.arange(len(flat))).all()
        return cls(
            as_tensor(tokens),
            None if valid is None else as_tensor(valid),
            tuple(map(as_tensor, num_kept)),
            tuple(int(row.max()) for row in num_kept),
            None if slots.all() else as_tensor(np.flatnonzero(slots)),
            int(flat[0]) if follow else None,
            cells,
            len(num_kept) == 1 and bool((num_kept[0] == (tokens.shape[1] if valid is None else valid.sum(1))).all()),
            tuple(int(row.min()) for row in num_kept),
            *((None, None) if frames is None else frames.max(axis=0).tolist()),
        )

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """The bucket's rows of values [R, ...]: [F, N, ...]; not a copy if the rows are consecutive."""
        shape = (*self.tokens.shape, *values.shape[1:])
        if self.first is not None:
            return values[self.first : self.first + self.tokens.numel()].view(shape)
        return values.index_select(0, self.tokens.flatten()).view(shape)

    def keep(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """[F, M, ...] of each level -> [G, ...] of the tokens that are kept."""
        joined = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
        rows = joined.flatten(0, 1)
        return rows if self.kept is None else rows.index_select(0, self.kept)

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        """Means of its groups: [R, C] -> [G, C]."""
        values, parts = self.take(tokens), []
        for grouping in self.groupings:
            values = grouping.apply(values)
            parts.append(values)
        return self.keep(parts)


@dataclass(frozen=True)
class SegmentedVideo:
    """A video whose frames are gathered into segments.

    Args:
        first: index of its first token among those that the stage is given.
        frames, frame_tokens: how many frames it has there, and how many tokens a frame has.
        cells: [frames, m] index of each frame's tokens among those that the round is given.
        segments: the number of segments. tokens: how many tokens they keep in all.
    """

    first: int
    frames: int
    frame_tokens: int
    cells: np.ndarray
    segments: int
    tokens: int


@dataclass(frozen=True)
class Round(Movable):
    """One step of a stage. It keeps, in this order, the tokens that it leaves alone and what its cells become.

    Args:
        method: the step's method.
        buckets: its cells; empty until the segments are known, if the step gathers frames into segments.
        rest: [P] index of each token that it leaves alone, or None if there is none.
        order: [G] indices that put the buckets' kept tokens in order; None: they are in order.
        videos: the videos whose frames are gathered into segments.
    """

    method: Method
    buckets: tuple[Bucket, ...]
    rest: torch.Tensor | None = None
    order: torch.Tensor | None = None
    videos: tuple[SegmentedVideo, ...] = ()

    @property
    def single(self) -> bool:
        """Whether the host knows that every kept token has the features of one input token."""
        return all(bucket.whole or all(made.alone for made in bucket.groupings) for bucket in self.buckets)

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        """Means of the groups: [R, C] -> [P + G, C]; differentiable."""
        return self.joined(tokens, [bucket.apply(tokens) for bucket in self.buckets])

    def joined(self, given: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """[P + G, ...] the tokens of `given` [R, ...] that are left alone, then those that the buckets keep."""
        kept = parts[0] if len(parts) == 1 else torch.cat(list(parts)) if parts else given[:0]
        kept = kept if self.order is None else kept.index_select(0, self.order)
        if self.rest is None:
            return kept
        # Tokens that hold one original each are repeated to the width of those that hold several.
        return torch.cat([given.index_select(0, self.rest).expand(-1, *kept.shape[1:]), kept])

    def segmented(self, labels: Sequence[np.ndarray]) -> Round:
        """The round with its cells, from labels [frames] of each video: the segment that each frame belongs to.

        Segments are in the order of their first frames.
        """
        cells, budgets = [], []
        for video, of_frame in zip(self.videos, labels):
            members = [np.flatnonzero(of_frame == label) for label in dict.fromkeys(of_frame.tolist())]
            cells += [video.cells[frames].reshape(-1) for frames in members]
            budgets += self.method.segment_budgets([len(frames) for frames in members], video.cells.shape[1])
        buckets, kept = buckets_of(cells, [(budget,) for budget in budgets])
        return dataclasses.replace(self, buckets=buckets, order=as_tensor(np.concatenate(kept)))


def round_of(method: Method, pieces: Sequence[Piece], count: int) -> tuple[Round | None, list[Piece], int]:
    """A step's round on `count` tokens (None: it does nothing), the pieces after it, and how many tokens it keeps."""
    if method.scope == "segment":
        runs = [(run, method.segments(sum(len(piece.cells) for piece in run))) for run in _by_span(pieces)]
        merges = any(segments is not None for _, segments in runs)
        return _segment_round(method, runs) if merges else (None, list(pieces), count)
    pieces, others, rest = left_alone(pieces) if method.first_only else (pieces, [], np.zeros(0, np.int64))
    groups = groups_of(method, pieces)
    cells = [cell for _, own in groups for cell in own]
    frames = frames_of(groups) if method.scope == "span" else None
    buckets, kept = buckets_of(cells, [method.budgets(len(cell)) for cell in cells], frames, len(rest))
    made = Round(method, buckets, as_tensor(rest) if len(rest) else None)
    return made, [*become(groups, kept), *others], len(rest) + sum(map(len, kept))


def depends_on_features(method: Method, cells: Sequence[Cell]) -> bool:
    """Whether the number of tokens that a step keeps in each of these cells is known only from the features."""
    apart = len({cell.span for cell in cells}) > len({cell.video for cell in cells})
    together = method.scope == "span" or any(cell.joint for cell in cells)
    return bool(cells) and (method.counts == "late" or (apart and together))


Group = tuple[list["Piece"], list[np.ndarray]]  # pieces, and the cells that they make


def groups_of(method: Method, pieces: Sequence[Piece]) -> list[Group]:
    """The pieces whose tokens are grouped together: all pieces of an image or video, in a step on whole images and
    videos and in the steps after it; else each piece alone. Several pieces make one cell."""
    videos: dict[int, list[Piece]] = {}
    for piece in pieces:
        videos.setdefault(piece.before.video, []).append(piece)
    out: list[Group] = []
    for own in videos.values():
        if method.scope == "span" or own[0].before.joint:
            group = [_joined(run, joint=True) for run in _by_span(own)]
            cells = [cell for piece in group for cell in piece.cells]
            out.append((group, [np.concatenate(cells)] if len(group) > 1 and cells else cells))
        else:
            out += [([piece], list(piece.cells)) for piece in own]
    return out


def frames_of(groups: Sequence[Group]) -> np.ndarray:
    """[cells, 2] for cells of whole images or videos: the most frames that each can have, and tokens of a frame."""
    return np.array([(own[0].before.frames, own[0].before.frame_tokens) for own, cells in groups for _ in cells])


def become(
    groups: Sequence[Group], kept: Sequence[np.ndarray], centers: Sequence[np.ndarray] | None = None
) -> list[Piece]:
    """The pieces after a round, one group after the other.

    Args:
        kept: for each cell the indices of its kept tokens among all that are kept.
        centers: for each cell the representatives of its kept tokens, as indices in the cell; needed if several pieces
            make a cell.
    """
    number, out = 0, []
    parts: list[Sequence[np.ndarray]]
    for group, cells in groups:
        own = kept[number : number + len(cells)]
        if len(group) > 1 and cells:
            assert centers is not None, "a cell of several pieces needs its representatives"
            ends = np.cumsum([sum(map(len, piece.cells)) for piece in group])
            piece_of = np.searchsorted(ends, centers[number], side="right")
            parts = [[own[0][piece_of == place]] for place in range(len(group))]
        else:
            parts = [own] if len(group) == 1 else [[]] * len(group)
        number += len(cells)
        for piece, part in zip(group, parts):
            out.append(piece.left_with(part))
    return out


def _segment_round(
    method: Method, runs: Sequence[tuple[Sequence[Piece], int | None]]
) -> tuple[Round, list[Piece], int]:
    """round_of() for segments. runs: each image's or video's pieces, and its number of segments (None: left alone)."""
    rest = [cell for run, segments in runs if segments is None for piece in run for cell in piece.cells]
    at, count, videos, out = 0, sum(map(len, rest)), [], []
    for run, segments in runs:
        if segments is None:
            out += as_they_are(run, at)
            at += sum(len(cell) for piece in run for cell in piece.cells)
            continue
        piece = _joined(run)
        sizes = method.kept_cells([len(cell) for cell in piece.cells])
        frames, tokens, each = len(piece.cells), sum(sizes), piece.before.tokens // len(piece.cells)
        videos.append(SegmentedVideo(piece.first, frames, each, np.stack(piece.cells), segments, tokens))
        ends = count + np.cumsum(sizes)
        out.append(dataclasses.replace(piece, cells=tuple(np.arange(e - s, e) for s, e in zip(sizes, ends))))
        count += tokens
    index = as_tensor(np.concatenate(rest)) if rest else None
    return Round(method, (), rest=index, videos=tuple(videos)), out, count


def _by_span(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces of each image or video (or of each frame, if text separates a video's frames), in order."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        if runs and runs[-1][0].before.span == piece.before.span:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _joined(run: Sequence[Piece], joint: bool = False) -> Piece:
    """Pieces that follow each other as one; if `joint`, with one cell of all their tokens."""
    cells = tuple(cell for piece in run for cell in piece.cells)
    cells = (np.concatenate(cells),) if joint and cells else cells
    tokens, first = sum(piece.before.tokens for piece in run), run[0]
    before = dataclasses.replace(first.before, tokens=tokens, joint=joint or first.before.joint)
    return dataclasses.replace(first, before=before, cells=cells)


def buckets_of(
    cells: Sequence[np.ndarray], budgets: Sequence[tuple[int, ...]], frames: np.ndarray | None = None, at: int = 0
) -> tuple[tuple[Bucket, ...], list[np.ndarray]]:
    """Cells in buckets of similar size, and for every cell the indices of its kept tokens among all that are kept.

    A bucket holds sizes between two powers of two, so that neither padding (at most half) nor the number of buckets
    (at most log2 of the largest cell) grows with the batch.

    Args:
        cells: for each cell the indices of its tokens among those of the round.
        budgets: for each cell how many tokens each level keeps.
        frames: [cells, 2], as in Bucket.of().
        at: how many kept tokens come before those of the cells.
    """
    classes: dict[int, list[int]] = {}
    for number, cell in enumerate(cells):
        classes.setdefault((len(cell) - 1).bit_length(), []).append(number)
    kept: list[np.ndarray] = [np.zeros(0, np.int64)] * len(cells)
    places, first, buckets = np.arange(at, at + sum(map(sum, budgets))), at, []
    for size in sorted(classes):
        numbers = classes[size]
        counts = np.array([len(cells[n]) for n in numbers])
        valid = np.arange(counts.max()) < counts[:, None]
        index = np.zeros(valid.shape, np.int64)
        index[valid] = np.concatenate([cells[n] for n in numbers])
        wanted = np.array([budgets[n] for n in numbers]).T
        own = None if frames is None else frames[numbers]
        buckets.append(Bucket.of(index, None if valid.all() else valid, wanted, np.array(numbers), own))
        for number, count in zip(numbers, wanted.sum(axis=0).tolist()):
            kept[number] = places[at - first : at - first + count]
            at += count
    return tuple(buckets), kept


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A host array as a tensor on the host."""
    return torch.from_numpy(np.ascontiguousarray(array))
