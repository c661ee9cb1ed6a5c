"""Lays out the stages whose counts depend on the features, once there are features.

A plan made before the vision tower ends before the first such stage. When that stage's tokens exist, each of its steps
groups them, the host reads how many groups each cell has, and the stage is laid out by the same functions as all
others, as are the stages after it, up to the next one of this kind. The host waits for the device once for each step
whose counts are late.

There are two kinds of such steps: methods with counts = "late", and, in a prompt with text between the frames of a
video, steps that group the tokens of all frames together (scope = "span") and the steps after them. Of the latter, the
number of tokens that stay is known in advance, but not how many of them are in each frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ppe_npu.engine.layout import Piece, Stage, Standing, Steps, lay_out, stage_of
from ppe_npu.engine.left_alone import left_alone
from ppe_npu.engine.merge import Holding, Tokens, merge_round, view_of
from ppe_npu.engine.rounds import (
    Bucket,
    Movable,
    Round,
    as_tensor,
    become,
    buckets_of,
    depends_on_features,
    frames_of,
    groups_of,
    round_of,
    upload,
)
from ppe_npu.engine.shown import Prompts, Texts
from ppe_npu.methods.base import Method


@dataclass(frozen=True)
class Ahead(Movable):
    """The stages of a batch that are not laid out yet.

    Args:
        standing: the tokens that the first of these stages is given.
        text, prompts: those of that stage, as in Stage.
        stages: their layers and steps. left, packed: as in lay_out().
    """

    standing: Standing
    text: torch.Tensor
    prompts: Prompts | None
    stages: Steps
    left: bool
    packed: bool

    @classmethod
    def of(cls, standing: Standing, stages: Steps, left: bool, packed: bool) -> Ahead:
        return cls(standing, standing.text, standing.prompts(stages[0][1]), stages, left, packed)

    @property
    def samples(self) -> int:
        """Rows of the batch in the decoder."""
        return 1 if self.packed else len(self.standing.before.real)

    @torch.no_grad()
    def settle(
        self, tokens: Tokens, holding: Holding | None, texts: Texts | None
    ) -> tuple[tuple[Stage, ...], Tokens, Ahead | None]:
        """Group the tokens of the first stage.

        Args:
            tokens, holding, texts: as in merge().

        Returns:
            the stage with its rounds, which are on the device, and the later stages that can now be laid out; the
            tokens that its last round keeps; the stages that still are not laid out, or None.
        """
        (layer, methods), *later = self.stages
        assert tokens.held is not None, "tokens that a pass is given hold original tokens"
        device = tokens.held.device
        rounds, pieces, count = [], self.standing.pieces, self.standing.count
        given = tokens
        made: Round | None
        for method in methods:
            if depends_on_features(method, [piece.before for piece in pieces]):
                made, pieces, count = _late_round(method, pieces, tokens, texts, device)
            else:
                made, pieces, count = round_of(method, pieces, count)
            if made is not None:
                last = method is methods[-1]
                step, tokens = merge_round(made.to(device), tokens, given, holding, texts, last)
                rounds.append(step)
        stage = stage_of(self.standing, layer, rounds, pieces, count, self.left, self.packed)
        more, standing = lay_out(self.standing.after(stage), later, self.left, self.packed)
        rest = tuple(later[len(more) :])
        ahead = Ahead.of(standing, rest, self.left, self.packed) if rest else None
        return (replace(stage, prompts=self.prompts), *more), tokens, ahead


def _late_round(
    method: Method, pieces: Sequence[Piece], tokens: Tokens, texts: Texts | None, device: torch.device
) -> tuple[Round, list[Piece], int]:
    """round_of() of a step with late counts, including the groupings of its cells, for which the host waits."""
    pieces, others, rest = left_alone(pieces) if method.first_only else (pieces, [], np.zeros(0, np.int64))
    groups = groups_of(method, pieces)
    shared = any(len(own) > 1 for own, _ in groups)  # then the pieces of the kept tokens must be found
    cells = [cell for _, own in groups for cell in own]
    frames = frames_of(groups) if method.scope == "span" else None
    buckets, _ = buckets_of(cells, [method.budgets(len(cell)) for cell in cells], frames)
    found = []
    for bucket in (bucket.to(device) for bucket in buckets):
        own = tokens.pick(bucket.take)
        view = view_of(bucket, own, bucket.valid, method, method, texts)
        found.append(replace(bucket, groupings=(method.group(view),)))
    counts, centers = _read(found, shared)
    kept: list[np.ndarray] = [np.zeros(0, np.int64)] * len(cells)
    stands: list[np.ndarray] = [np.zeros(0, np.int64)] * len(cells)
    settled, at = [], len(rest)
    for bucket, count, center in zip(found, counts, centers):
        whole = count.tolist() == [len(cells[cell]) for cell in bucket.cells]
        settled.append(replace(_settled(bucket, count, device), whole=whole))
        for number, (cell, groups_kept) in enumerate(zip(bucket.cells, count.tolist())):
            kept[cell] = np.arange(at, at + groups_kept)
            stands[cell] = center[number, :groups_kept] if shared else stands[cell]
            at += groups_kept
    made = Round(method, tuple(settled), as_tensor(rest) if len(rest) else None)
    return made, [*become(groups, kept, stands), *others], at


def _read(buckets: Sequence[Bucket], centers: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each bucket [F] how many groups each cell has and, if `centers`, [F, M] their representatives; one read."""
    if not buckets:  # no image or video has any tokens left
        return [], []
    parts = [(bucket.groupings[0].counts > 0).long() for bucket in buckets]
    parts += [bucket.groupings[0].representatives for bucket in buckets] if centers else []
    flat = torch.cat([part.flatten() for part in parts]).cpu().numpy()
    ends = np.cumsum([part.numel() for part in parts])
    read = [flat[end - part.numel() : end].reshape(part.shape) for part, end in zip(parts, ends)]
    present, rest = read[: len(buckets)], read[len(buckets) :]
    counts = [groups.sum(1) for groups in present]
    for groups, own in zip(present, counts):
        if (groups != (np.arange(groups.shape[1]) < own[:, None])).any():
            raise ValueError("a method with late counts must number the groups of a cell 0, 1, 2, ... without gaps")
    return counts, rest if centers else present


def _settled(bucket: Bucket, counts: np.ndarray, device: torch.device) -> Bucket:
    """A bucket with its grouping, trimmed to the number of groups that each cell turned out to have."""
    (grouping,), most = bucket.groupings, max(int(counts.max()), 1)
    slots = np.arange(most) < counts[:, None]
    trimmed = replace(grouping, counts=grouping.counts[:, :most], representatives=grouping.representatives[:, :most])
    return replace(
        bucket,
        num_kept=(upload(as_tensor(counts), device),),
        most=(most,),
        kept=None if slots.all() else upload(as_tensor(np.flatnonzero(slots)), device),
        groupings=(trimmed,),
    )
