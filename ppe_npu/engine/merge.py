"""One stage's merge: its rounds are given their groups, which then apply to any tensor that stands as the tokens do.

The same code runs on the host, for methods that look at places alone, before any feature exists.

What a merged token holds are the original tokens that speak for its group: those whose positions it keeps (PPE, arXiv
2510.22936). Before the first merge every token stands for itself. A merged token holds several original tokens, and a
group of merged tokens draws from all that its members hold. See methods/positions/entries.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ppe_npu.engine.rounds import Bucket, Round, as_tensor, upload
from ppe_npu.engine.shown import FIELDS, Texts
from ppe_npu.engine.tower import TowerTokens
from ppe_npu.methods.base import Method
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.positions import Rule
from ppe_npu.methods.positions.entries import among_equals, members
from ppe_npu.methods.view import View


@dataclass(frozen=True)
class Tokens:
    """What is known of R tokens, as they pass through the rounds of a stage.

    Args:
        features: [R, C], or None on the host.
        held: [R, H] int64, the original tokens that each of them holds, or None on the host.
        places: [R, 3] (frame, row, column), where a method needs them.
        tower: what blocks of the vision tower say of them, where a method needs it; of a merged token, what they say
            of its representative, as with its place.
        sizes: [R] int64, how many original tokens' features are in each, where a method needs them.
        spots: [R] int64, where each stood before the stage in the flattened batch.
        seen: of each field of the View that a decoder layer gives, and whether it is the layer before (see
            Method.layer_before), the numbers of each token [R, ...]; of a merged token, those of its representative.
    """

    features: torch.Tensor | None = None
    held: torch.Tensor | None = None
    places: torch.Tensor | None = None
    tower: TowerTokens | None = None
    sizes: torch.Tensor | None = None
    spots: torch.Tensor | None = None
    seen: Mapping[tuple[str, bool], torch.Tensor] = field(default_factory=dict)

    def pick(self, pick: Callable[[torch.Tensor], torch.Tensor]) -> Tokens:
        """The same of other tokens: pick(values [R, ...]) of each part."""
        return Tokens.together(lambda parts: pick(parts[0]), self)

    @staticmethod
    def together(join: Callable[[list[torch.Tensor]], torch.Tensor], *tokens: Tokens) -> Tokens:
        """What join([values [R, ...] of each]) makes of every part that the first of these has."""
        made: dict[str, Any] = {}
        for name in ("features", "held", "places", "sizes", "spots"):
            if getattr(tokens[0], name) is not None:
                made[name] = join([getattr(one, name) for one in tokens])
        towers = [one.tower for one in tokens if one.tower is not None]
        if towers and len(towers) == len(tokens):
            made["tower"] = TowerTokens.together(join, *towers)
        return Tokens(**made, seen={name: join([one.seen[name] for one in tokens]) for name in tokens[0].seen})


@dataclass(frozen=True)
class Holding:
    """How a merged token's positions are chosen: of `k` members, by a rule of methods/positions.

    Args:
        positions: [axes, originals] int64, of each original token, for rules that look at places.
    """

    k: int
    rule: Rule
    positions: torch.Tensor | None = None


@torch.no_grad()
def merge(
    rounds: Sequence[Round], tokens: Tokens, holding: Holding | None = None, texts: Texts | None = None
) -> tuple[tuple[Round, ...], Tokens]:
    """Group the tokens of a stage; nothing is differentiated.

    Args:
        tokens: their features without a gradient.
        texts: the text beside them, where a method looks at it.

    Returns:
        the rounds with their groupings, and what is known of the tokens that the last one keeps. (Their features are
        Round.apply's to make: they are None.)
    """
    given, done = tokens, []
    for number, step in enumerate(rounds):
        step, tokens = merge_round(step, tokens, given, holding, texts, last=number == len(rounds) - 1)
        done.append(step)
    return tuple(done), tokens


def merge_round(
    step: Round, tokens: Tokens, given: Tokens, holding: Holding | None, texts: Texts | None, last: bool
) -> tuple[Round, Tokens]:
    """One round of merge(), with its groupings, and what is known of the tokens that it keeps.

    Args:
        given: the tokens that the stage was given.
        last: whether no round comes after it, that would need their features.
    """
    if step.videos and not step.buckets:
        step = _segmented(step, given)
    pairs = [_grouped(step.method, bucket, tokens.pick(bucket.take), holding, texts) for bucket in step.buckets]
    step = replace(step, buckets=tuple(bucket for bucket, _ in pairs))
    features = None if last or tokens.features is None else step.apply(tokens.features)
    parts = (replace(tokens, features=None), *(kept for _, kept in pairs))
    left = Tokens.together(lambda values: step.joined(values[0], values[1:]), *parts)
    return step, replace(left, features=features)


def _grouped(
    method: Method, bucket: Bucket, tokens: Tokens, holding: Holding | None, texts: Texts | None
) -> tuple[Bucket, Tokens]:
    """A bucket with its groupings, one a level, and what is known of what it keeps. Parts of tokens: [F, N, ...]."""
    groupings: list[Grouping] = []
    kept: list[Tokens] = []
    valid = bucket.valid
    if holding is not None and method.place == "tower":  # which gave all members of a group the same features
        holding = replace(holding, rule=among_equals(holding.rule))
    for level, part in enumerate(method.levels or (method,)):
        if groupings:
            features = None if tokens.features is None else groupings[-1].apply(tokens.features)
            tokens, before = replace(kept[-1], features=features), bucket.num_kept[level - 1]
            valid = torch.arange(bucket.most[level - 1], device=before.device) < before[:, None]
        if bucket.groupings:
            grouping = bucket.groupings[level]
        else:
            grouping = part.group(view_of(bucket, tokens, valid, part, method, texts, level))
        groupings.append(grouping)
        # A group's token stands where its representative stands.
        left = replace(tokens, features=None).pick(grouping.at_representatives)
        if tokens.sizes is not None:
            left = replace(left, sizes=grouping.sums(tokens.sizes))
        if tokens.held is not None and holding is not None:
            own = tokens.features, tokens.held, holding.positions
            left = replace(left, held=members(grouping, holding.k, holding.rule, *own))
        kept.append(left)
    return replace(bucket, groupings=tuple(groupings)), Tokens.together(bucket.keep, *kept)


def view_of(
    bucket: Bucket,
    tokens: Tokens,
    valid: torch.Tensor | None,
    part: Method,
    method: Method,
    texts: Texts | None,
    level: int = 0,
) -> View:
    """What a method is shown of a bucket's cells, whose parts are [F, N, ...]: beside the tokens what it needs that the
    vision tower, a layer and the text say.

    Args:
        part: the method that looks. method: the step that it is a level of, as a rule itself.
    """
    fields = (name for need in part.needs if need in FIELDS for name in FIELDS[need])
    shown: dict[str, Any] = {name: tokens.seen[name, part.layer_before] for name in fields}
    if texts is not None and tokens.spots is not None:
        shown |= texts.shown(part, tokens.spots[:, 0])
    if tokens.tower is not None:
        shown |= tokens.tower.shown(method)
    return View(
        bucket.num_kept[level],
        bucket.most[level],
        tokens.features,
        valid,
        tokens.places,
        tokens.sizes,
        least=bucket.least[level],
        frames=bucket.frames,
        frame_tokens=bucket.frame_tokens,
        **shown,
    )


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
        assert given.places is not None, "on the host tokens are known by their places"
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
