"""Groups of the methods that look at no feature (methods.BLIND): known on the host with the rest of the plan.

What follows is what merging.py does on the device, with places (frame, row, column) in the place of features: a merged
token stands where its representative stands. So nothing is left to do on the device but to take means, and the events
of a video cost no look at it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from ppe_npu.config import CompressionConfig
from ppe_npu.engine.layout import Bucket, Groups, StageLayout, Video
from ppe_npu.engine.spans import PromptLayout
from ppe_npu.methods import BLIND
from ppe_npu.methods.events import event_layout


def grouped_stages(
    stages: Sequence[StageLayout], layout: PromptLayout, config: CompressionConfig
) -> tuple[StageLayout, ...]:
    """The stages with their groups, if the method needs no features; else as they are."""
    if config.method not in BLIND:
        return tuple(stages)
    places, out = feature_places(layout), []
    for number, stage in enumerate(stages):
        if number > 0 or config.merges_before_llm:
            stage, kept = _grouped_stage(stage, places, config)
        else:
            kept = np.concatenate([places[:0], *(_kept(bucket, [places[bucket.tokens]]) for bucket in stage.buckets)])
        out.append(stage)
        rows = np.concatenate([np.zeros((len(stage.text), 3), np.int64), kept, np.zeros((1, 3), np.int64)])
        places = rows[stage.rows].reshape(-1, 3)
    return tuple(out)


def feature_places(layout: PromptLayout) -> np.ndarray:
    """[V, 3] (frame, row, column) of every visual token in its image or video, in the features' order."""
    places = np.zeros((int(layout.visual.sum()), 3), dtype=np.int64)
    frames: dict[tuple[str, int], int] = {}  # of each image or video so far: a video's frames may stand apart
    for span in layout.spans:
        first = frames.get((span.modality, span.source), 0)
        frames[span.modality, span.source] = first + span.grid[0]
        grid = np.indices(span.grid).reshape(3, -1).T + np.array([first, 0, 0])
        places[span.feature : span.feature + span.tokens] = grid
    return places


def _grouped_stage(stage: StageLayout, places: np.ndarray, config: CompressionConfig) -> tuple[StageLayout, np.ndarray]:
    """A stage with its groups, and the places [G, 3] of all that it keeps."""
    buckets, kept = _grouped_buckets(stage.buckets, places, config)
    if not stage.videos:
        return dataclasses.replace(stage, buckets=buckets), kept
    labels = [_frame_labels(video, config) for video in stage.videos]
    events = event_layout(stage.videos, labels, config)
    event_buckets, event_kept = _grouped_buckets(events.buckets, kept, config)
    events = dataclasses.replace(events, buckets=event_buckets)
    return dataclasses.replace(stage, buckets=buckets, events=events), np.concatenate([kept, event_kept[events.order]])


def _frame_labels(video: Video, config: CompressionConfig) -> np.ndarray:
    """[frames] which event each frame belongs to: the method's groups of frames that follow each other."""
    frames = np.zeros((video.frames, 3), dtype=np.int64)
    frames[:, 0] = np.arange(video.frames)
    return _group(config.method, frames.tobytes(), video.events, config.seed)[1]


def _grouped_buckets(
    buckets: Sequence[Bucket], places: np.ndarray, config: CompressionConfig
) -> tuple[tuple[Bucket, ...], np.ndarray]:
    parts = [_grouped_bucket(bucket, places[bucket.tokens], config) for bucket in buckets]
    kept = np.concatenate([places[:0], *(kept for _, kept in parts)])
    return tuple(bucket for bucket, _ in parts), kept


def _grouped_bucket(bucket: Bucket, places: np.ndarray, config: CompressionConfig) -> tuple[Bucket, np.ndarray]:
    """A bucket with its groups, one ratio after the other, and the places of all that they keep. places: [F, N, 3]."""
    cells = np.arange(len(places))[:, None]
    counts = np.full(len(places), places.shape[1]) if bucket.valid is None else bucket.valid.sum(1)
    groups, parts = [], []
    for budgets in bucket.budgets:
        labels = np.full(places.shape[:2], -1, dtype=np.int64)
        representatives = np.zeros((len(places), budgets.max()), dtype=np.int64)
        for cell, (count, budget) in enumerate(zip(counts.tolist(), budgets.tolist())):
            chosen, of_token = _group(config.method, places[cell, :count].tobytes(), budget, config.seed)
            labels[cell, :count], representatives[cell, :budget] = of_token, chosen
        groups.append(Groups(labels, representatives))
        places, counts = places[cells, representatives], budgets
        parts.append(places)
    return dataclasses.replace(bucket, groups=tuple(groups)), _kept(bucket, parts)


def _kept(bucket: Bucket, parts: Sequence[np.ndarray]) -> np.ndarray:
    """[F, M, 3] of each ratio -> [G, 3] of the tokens that are kept."""
    return np.concatenate(parts, axis=1).reshape(-1, 3)[bucket.kept]


@functools.lru_cache(maxsize=1024)
def _group(method: str, places: bytes, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A cell's representatives and labels; frames of one size have the same ones again and again."""
    return BLIND[method](np.frombuffer(places, np.int64).reshape(-1, 3), budget, seed)
