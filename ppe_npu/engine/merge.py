"""One stage's merge: its rounds are given their groups, which then apply to any tensor that stands as the tokens do.

The same code runs on the host, for methods that look at places alone, before any feature exists.

What a merged token holds are the original tokens that speak for its group: those whose positions it keeps (PPE, arXiv
2510.22936). Before the first merge every token stands for itself. A merged token holds several original tokens, and a
group of merged tokens draws from all that its members hold. See members.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ppe_npu.engine.members import members
from ppe_npu.engine.rounds import Bucket, Round, as_tensor, upload
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View


@dataclass(frozen=True)
class Tokens:
    """What is known of R tokens, as they pass through the rounds of a stage.

    Args:
        features: [R, C], or None on the host.
        held: [R, H] int64, the original tokens that each of them holds, or None on the host.
        places: [R, 3] (frame, row, column), where a method needs them.
    """

    features: torch.Tensor | None = None
    held: torch.Tensor | None = None
    places: torch.Tensor | None = None

    def pick(self, pick) -> Tokens:
        """The same of other tokens: pick(values [R, ...]) of each part."""
        parts = (self.features, self.held, self.places)
        return Tokens(*(None if part is None else pick(part) for part in parts))

    def detached(self) -> Tokens:
        """The same where nothing is differentiated."""
        return self if self.features is None else replace(self, features=self.features.detach())


@dataclass(frozen=True)
class Holding:
    """How a merged token's positions are chosen: `k` members by a rule of members.py, or None: its representative's."""

    k: int
    rule: str


@torch.no_grad()
def merge(rounds: Sequence[Round], tokens: Tokens, holding: Holding | None = None) -> tuple[tuple[Round, ...], Tokens]:
    """Group the tokens of a stage; nothing is differentiated.

    Returns:
        the rounds with their groupings, and what is known of the tokens that the last one keeps. (Their features are
        Round.apply's to make: they are None.)
    """
    given, done = tokens.detached(), []
    tokens = given
    for number, step in enumerate(rounds):
        step, tokens = merge_round(step, tokens, given, holding, last=number == len(rounds) - 1)
        done.append(step)
    return tuple(done), tokens


def merge_round(
    step: Round, tokens: Tokens, given: Tokens, holding: Holding | None, last: bool
) -> tuple[Round, Tokens]:
    """One round of merge(), with its groupings, and what is known of the tokens that it keeps.

    Args:
        given: the tokens that the stage was given.
        last: whether no round comes after it, that would need their features.
    """
    if step.videos and not step.buckets:
        step = _segmented(step, given)
    pairs = [_grouped(step.method, bucket, tokens.pick(bucket.take), holding) for bucket in step.buckets]
    step = replace(step, buckets=tuple(bucket for bucket, _ in pairs))
    features = None if last or tokens.features is None else step.apply(tokens.features)
    return step, Tokens(features, *(_joined(step, tokens, pairs, part) for part in ("held", "places")))


def _joined(step: Round, given: Tokens, pairs: Sequence[tuple[Bucket, Tokens]], part: str) -> torch.Tensor | None:
    before = getattr(given, part)
    return None if before is None else step.joined(before, [getattr(kept, part) for _, kept in pairs])


def _grouped(method, bucket: Bucket, tokens: Tokens, holding: Holding | None) -> tuple[Bucket, Tokens]:
    """A bucket with its groupings, one a level, and what is known of what it keeps. Parts of tokens: [F, N, ...]."""
    valid, groupings, kept = bucket.valid, [], []
    for level, (part, num_kept, most) in enumerate(zip(method.levels, bucket.num_kept, bucket.most)):
        if groupings:
            features = None if tokens.features is None else groupings[-1].apply(tokens.features)
            tokens, before = replace(kept[-1], features=features), bucket.num_kept[level - 1]
            valid = torch.arange(bucket.most[level - 1], device=before.device) < before[:, None]
        if bucket.groupings:
            grouping = bucket.groupings[level]
        else:
            grouping = part.group(view_of(num_kept, most, tokens, valid))
        groupings.append(grouping)
        kept.append(_kept(grouping, tokens, holding))
    parts = [[getattr(tokens, name) for tokens in kept] for name in ("held", "places")]
    joined = (None if values[0] is None else bucket.keep(values) for values in parts)
    return replace(bucket, groupings=tuple(groupings)), Tokens(None, *joined)


def view_of(num_kept: torch.Tensor, most: int, tokens: Tokens, valid: torch.Tensor | None) -> View:
    """What a method is shown of cells; parts of tokens: [F, N, ...]."""
    return View(num_kept, most, tokens.features, valid, tokens.places)


def _kept(grouping: Grouping, tokens: Tokens, holding: Holding | None) -> Tokens:
    """What is known of each group's token [F, M, ...]: it stands where its representative stands."""
    held, places = tokens.held, tokens.places
    if held is not None:
        if holding is None:
            held = grouping.at_representatives(held)
        else:
            held = members(grouping, holding.k, holding.rule, tokens.features, held)
    return Tokens(None, held, None if places is None else grouping.at_representatives(places))


def _segmented(step: Round, given: Tokens) -> Round:
    """With the segments of its videos, by the means of their frames; the host waits for them.

    Args:
        given: the tokens that the stage was given, from which the videos' frames come.
    """
    longest = max(video.frames for video in step.videos)
    counts = np.array([video.frames for video in step.videos])
    wanted = np.array([video.segments for video in step.videos])
    valid = None if (counts == longest).all() else np.arange(longest) < counts[:, None]
    if given.features is None:
        device, means = given.places.device, None
    else:
        device = given.features.device
        means = given.features.new_zeros(len(counts), longest, given.features.shape[1], dtype=torch.float32)
        for number, video in enumerate(step.videos):
            frames = given.features[video.first : video.first + video.frames * video.frame_tokens]
            frames = frames.view(video.frames, video.frame_tokens, -1)
            means[number, : video.frames] = frames.mean(1, dtype=torch.float32)
    places = np.zeros((len(counts), longest, 3), np.int64)
    places[:, :, 0] = np.arange(longest)
    view = View(
        upload(as_tensor(wanted), device),
        int(wanted.max()),
        means,
        None if valid is None else upload(as_tensor(valid), device),
        upload(as_tensor(places), device) if "places" in step.method.needs else None,
    )
    labels = step.method.segment(view).labels.cpu().numpy()
    return step.segmented([of_frame[: video.frames] for of_frame, video in zip(labels, step.videos)]).to(device)
