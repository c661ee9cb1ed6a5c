"""Temporal compression: the frames of a video grouped into events, and the tokens of an event merged once more.

Source: Chat-UniVi (arXiv 2311.08046), section 3.2. Which frames make an event depends on the features, so the host
waits for the device here, once for all videos of a batch; everything else of a compression is known in advance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ppe_npu.config import CompressionConfig
from ppe_npu.grouping import Grouping
from ppe_npu.layout import Video, buckets_of
from ppe_npu.methods import METHODS
from ppe_npu.plan import BucketOnDevice, upload


@dataclass(frozen=True)
class Events:
    """The events of a batch.

    Args:
        buckets: events of like size; their tokens are indices among what the frames kept.
        order: [G] which of the buckets' kept tokens stands where: by video, event after event.
        groupings: one for each bucket.
    """

    buckets: tuple[BucketOnDevice, ...]
    order: torch.Tensor
    groupings: tuple[Grouping, ...] = ()

    def grouped(self, groupings: Sequence[Grouping]) -> "Events":
        return replace(self, groupings=tuple(groupings))

    def arranged(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What each bucket keeps, [G_b, ...], in the events' order."""
        return torch.cat(list(parts)).index_select(0, self.order)

    def apply(self, kept: torch.Tensor) -> torch.Tensor:
        """Means of the events' groups: [R, C] -> [G, C]; differentiable."""
        parts = []
        for bucket, grouping in zip(self.buckets, self.groupings):
            parts.append(bucket.keep([grouping.apply(bucket.take(kept))]))
        return self.arranged(parts)


def find_events(videos: Sequence[Video], tokens: torch.Tensor, config: CompressionConfig) -> Events:
    """Group the frames of every video by their mean features, and lay out the events in order of their first frames.

    Args:
        tokens: [R, C], those that the videos' frames were merged from.
    """
    events, budgets = [], []
    for video, labels in zip(videos, _frame_labels(videos, tokens, config)):
        frames = [np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())]
        events += [video.kept[members].reshape(-1) for members in frames]
        if config.event_ratio is None:
            budgets += [video.kept.shape[1]] * len(frames)
        else:
            budgets += shared(video.tokens, [len(members) for members in frames], video.kept.shape[1])
    buckets, kept = buckets_of(events, [(budget,) for budget in budgets])
    order = upload(np.concatenate(kept), tokens.device)
    return Events(tuple(BucketOnDevice.of(bucket, tokens.device) for bucket in buckets), order)


def _frame_labels(videos: Sequence[Video], tokens: torch.Tensor, config: CompressionConfig) -> list[np.ndarray]:
    """[frames] which event each frame of each video belongs to; the host waits for it."""
    longest = max(video.frames for video in videos)
    means = tokens.new_zeros(len(videos), longest, tokens.shape[1], dtype=torch.float32)
    for number, video in enumerate(videos):
        frames = tokens[video.first : video.first + video.frames * video.frame_tokens]
        means[number, : video.frames] = frames.view(video.frames, video.frame_tokens, -1).mean(1, dtype=torch.float32)
    counts = np.array([video.frames for video in videos])
    valid = None if (counts == longest).all() else upload(np.arange(longest) < counts[:, None], tokens.device)
    wanted = np.array([video.events for video in videos])
    budgets = upload(wanted, tokens.device)
    grouping = METHODS[config.method](means, valid, budgets, int(wanted.max()), config.order, 0, config.ties)
    labels = grouping.labels.cpu().numpy()
    return [labels[number, : video.frames] for number, video in enumerate(videos)]


def shared(total: int, frames: Sequence[int], frame_tokens: int) -> list[int]:
    """`total` tokens for the events of a video in proportion to their frames, by largest remainders.

    Args:
        total: at least the number of events, at most all frames' tokens.
        frames: of each event.
        frame_tokens: of each frame; an event keeps at least one token and at most all of its own.
    """
    quota = np.array(frames) * (total / sum(frames))
    out = np.clip(np.floor(quota + 1e-9).astype(np.int64), 1, np.array(frames) * frame_tokens)
    while out.sum() != total:
        step = 1 if out.sum() < total else -1
        open_ = out < np.array(frames) * frame_tokens if step > 0 else out > 1
        out[np.where(open_, step * (quota - out), -np.inf).argmax()] += step
    return out.tolist()
