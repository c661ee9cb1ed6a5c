"""A prompt's plan: all that is known of it before the vision tower has run, on the host and uploaded to the device.

Uploads of index lists make the host wait for the device's queue. They are done before the tower is started, so that
nothing between the tower and the first decoder layer has to wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ppe_npu.errors import InputError
from ppe_npu.grouping import Grouping
from ppe_npu.layout import Arrangement, Bucket, EventLayout, Groups, StageLayout, Video
from ppe_npu.packing import Segments, borders_of, numbers
from ppe_npu.spans import PromptLayout
from ppe_npu.stopwatch import Stopwatch


@dataclass(frozen=True)
class BucketOnDevice:
    """A Bucket's indices as tensors: tokens [F, N], valid [F, N] or None, budgets [F] of each ratio, kept [G] or None
    if all are; the groupings of each ratio, where they are known already. The largest budget of each ratio, and where
    tokens follow each other the first one, stay host numbers."""

    tokens: torch.Tensor
    valid: torch.Tensor | None
    budgets: tuple[torch.Tensor, ...]
    most: tuple[int, ...]
    kept: torch.Tensor | None
    first: int | None
    groupings: tuple[Grouping, ...]

    @classmethod
    def of(cls, bucket: Bucket, device: torch.device) -> "BucketOnDevice":
        valid = None if bucket.valid is None else upload(bucket.valid, device)
        budgets = tuple(upload(row, device) for row in bucket.budgets)
        most = tuple(int(row.max()) for row in bucket.budgets)
        kept = None if len(bucket.kept) == len(bucket.tokens) * sum(most) else upload(bucket.kept, device)
        groupings = tuple(_grouping(groups, device) for groups in bucket.groups)
        return cls(upload(bucket.tokens, device), valid, budgets, most, kept, bucket.first, groupings)

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """The bucket's rows of [R, ...]: [F, N, ...]; not a copy where they follow each other."""
        shape = (*self.tokens.shape, *values.shape[1:])
        if self.first is not None:
            return values[self.first : self.first + self.tokens.numel()].view(shape)
        return values.index_select(0, self.tokens.flatten()).view(shape)

    def keep(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """[F, M, ...] of each ratio -> [G, ...] of the tokens that are kept."""
        joined = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
        rows = joined.flatten(0, 1)
        return rows if self.kept is None else rows.index_select(0, self.kept)


def _grouping(groups: Groups, device: torch.device) -> Grouping:
    slots = np.arange(groups.representatives.shape[1])
    counts = (groups.labels[:, None] == slots[:, None]).sum(-1)
    return Grouping(*(upload(array, device) for array in (groups.labels, counts, groups.representatives)))


@dataclass(frozen=True)
class EventsOnDevice:
    """An EventLayout's indices as tensors."""

    buckets: tuple[BucketOnDevice, ...]
    order: torch.Tensor

    @classmethod
    def of(cls, events: EventLayout, device: torch.device) -> "EventsOnDevice":
        return cls(tuple(BucketOnDevice.of(bucket, device) for bucket in events.buckets), upload(events.order, device))


@dataclass(frozen=True)
class StageOnDevice:
    """A StageLayout's indices as tensors.

    Args:
        text: [T] index of each text token in the flattened batch before the merge.
        rows: [B, L] which row stands where. sources: [B, L]. real: [B, L] bool, of what it leaves.
        buckets: the cells to cluster. videos: those grouped into events, which are worked out on the host.
        events: these events, where they are known already.
        merges: whether it merges at all, or only gathers.
        numbers: of a packed batch [1, L], the place of each token in its sample; else None.
        segments: of what it leaves, the samples as attention may see them; None for a batch without padding.
    """

    text: torch.Tensor
    rows: torch.Tensor
    sources: torch.Tensor
    real: torch.Tensor
    buckets: tuple[BucketOnDevice, ...]
    videos: tuple[Video, ...]
    events: EventsOnDevice | None
    merges: bool
    numbers: torch.Tensor | None
    segments: Segments | None

    @classmethod
    def of(cls, stage: StageLayout, merges: bool, device: torch.device) -> "StageOnDevice":
        text, rows, sources, real = (
            upload(array, device) for array in (stage.text, stage.rows, stage.sources, stage.after.real)
        )
        buckets = tuple(BucketOnDevice.of(bucket, device) for bucket in stage.buckets)
        place = None if stage.borders is None else upload(numbers(stage.borders), device)
        events = None if stage.events is None else EventsOnDevice.of(stage.events, device)
        segments = _segments(stage, device)
        return cls(text, rows, sources, real, buckets, stage.videos, events, merges, place, segments)


def _segments(stage: StageLayout, device: torch.device) -> Segments | None:
    real = stage.after.real.reshape(-1)
    if stage.borders is not None or not stage.after.padded:
        return None if stage.borders is None else Segments(stage.borders)
    tokens = np.where(real, real.cumsum() - 1, real.sum())
    return Segments(borders_of(stage.after.real), upload(real.nonzero()[0], device), upload(tokens, device))


@dataclass(frozen=True)
class PlanOnDevice:
    """A PromptPlan's indices as tensors.

    Args:
        stages: the merge before the LLM (if only a gathering), then one for each layer that merges on entry.
        positions: [3, B * S + 1] (t, h, w) of every token of the prompt, then those of padding, 0.
        visual: [V] index in the flattened [B * S] of each feature: of all images, then of all videos.
        following: [B] the position after each sample's largest.
    """

    stages: tuple[StageOnDevice, ...]
    positions: torch.Tensor
    visual: torch.Tensor
    following: torch.Tensor


@dataclass(frozen=True)
class PromptPlan:
    """A batch of prompts before compression. Everything but `on` is on the host.

    Args:
        layout: where the prompt's tokens stand.
        stages: the merge before the LLM (if only a gathering), then one for each layer that merges on entry.
        merges_before_llm: whether the first stage merges.
        positions: [3, B, S] (t, h, w) of every token before compression.
        following: [B] the position after each sample's largest.
        watch: time spent on the plan, uploading it among it.
    """

    layout: PromptLayout
    stages: tuple[StageLayout, ...]
    merges_before_llm: bool
    positions: np.ndarray
    following: np.ndarray
    watch: Stopwatch
    _uploaded: dict[torch.device, PlanOnDevice] = field(default_factory=dict, init=False, repr=False, compare=False)

    def on(self, device: torch.device) -> PlanOnDevice:
        """The plan on a device; uploaded when first asked for."""
        if device not in self._uploaded:
            self.watch.start()
            positions = np.concatenate([self.positions.reshape(3, -1), np.zeros((3, 1), np.int64)], axis=1)
            stages = (
                StageOnDevice.of(stage, number > 0 or self.merges_before_llm, device)
                for number, stage in enumerate(self.stages)
            )
            self._uploaded[device] = PlanOnDevice(
                tuple(stages),
                *(upload(array, device) for array in (positions, _visual_order(self.layout), self.following)),
            )
            self.watch.stop()
        return self._uploaded[device]

    @property
    def last(self) -> Arrangement:
        """How tokens stand in the output."""
        return self.stages[-1].after

    def labels(self, labels: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
        """[B, S] labels -> [B, L] of the output: text labels follow their tokens; all else is ignored.

        A sample's first label is ignored, too, where a place before it would have to predict it: padding on the left,
        or in a packed batch the end of another sample.
        """
        if labels.shape != self.layout.real.shape:
            raise InputError(f"labels have shape {list(labels.shape)} but input_ids {list(self.layout.real.shape)}")
        text, borders = self.last.text.copy(), self.stages[-1].borders
        text[:, 1:] &= self.last.real[:, :-1]
        if borders is not None:
            labels = labels.reshape(1, -1)
            text[0, [start for start in borders[:-1] if start < text.shape[1]]] = False
        origins, text = upload(self.last.origins, labels.device), upload(text, labels.device)
        return torch.where(text, labels.gather(1, origins), ignore_index)


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of a host array on the device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def _visual_order(layout: PromptLayout) -> np.ndarray:
    length = layout.real.shape[1]
    spans = sorted(layout.spans, key=lambda span: span.feature)
    return np.concatenate(
        [np.zeros(0, np.int64), *(span.sample * length + span.start + np.arange(span.tokens) for span in spans)]
    )
