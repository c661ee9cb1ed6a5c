"""Temporal compression: the frames of a video grouped into events, and the tokens of an event merged once more.

Source: Chat-UniVi (arXiv 2311.08046), section 3.2. Which frames make an event depends on the features (of a method
that looks at them), so the host waits for the device here, once for all videos of a batch; everything else of a
compression is known in advance.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ppe_npu.config import CompressionConfig
from ppe_npu.engine.layout import EventLayout, Video, buckets_of
from ppe_npu.engine.plan import upload
from ppe_npu.methods import METHODS


def event_layout(videos: Sequence[Video], labels: Sequence[np.ndarray], config: CompressionConfig) -> EventLayout:
    """The events in order of their first frames.

    Args:
        labels: of each video [frames], which event each frame belongs to.
    """
    events, budgets = [], []
    for video, of_frame in zip(videos, labels):
        frames = [np.flatnonzero(of_frame == label) for label in dict.fromkeys(of_frame.tolist())]
        events += [video.kept[members].reshape(-1) for members in frames]
        if config.event_ratio is None:
            budgets += [video.kept.shape[1]] * len(frames)
        else:
            budgets += shared(video.tokens, [len(members) for members in frames], video.kept.shape[1])
    buckets, kept = buckets_of(events, [(budget,) for budget in budgets])
    return EventLayout(buckets, np.concatenate(kept))


def frame_labels(videos: Sequence[Video], tokens: torch.Tensor, config: CompressionConfig) -> list[np.ndarray]:
    """[frames] which event each frame of each video belongs to, by the frames' mean features; the host waits for it.

    Args:
        tokens: [R, C], those that the videos' frames were merged from.
    """
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
