"""One stage's merge: finds the groups of its rounds, which can then be applied to any tensor in the tokens' order.

The same code runs on the host before any feature exists, for methods that look at places alone.

A merged token holds the original tokens whose positions it keeps (PPE, arXiv 2510.22936). Before the first merge every
token holds itself. When merged tokens are merged again, the new token holds some of the original tokens that they hold.
See methods/positions/entries.py.
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
    """The data of R tokens as they pass through the rounds of a stage.

    Args:
        features: [R, C], or None on the host.
        held: [R, H] int64, the original tokens that each token holds, or None on the host.
        places: [R, 3] (frame, row, column), if a method needs them. A merged token has its representative's.
        tower: the numbers that the vision tower's blocks give for each token, if a method needs them. A merged token
            has its representative's.
        sizes: [R] int64, how many original tokens' features are in each, if a method or the attention needs them.
        spots: [R] int64, the index of each token in the flattened batch before the stage.
        seen: [R, ...] values from a decoder layer, keyed by the View's field and by whether they are from the layer
            before (see Method.layer_before). A merged token has its representative's.
    """

    features: torch.Tensor | None = None
    held: torch.Tensor | None = None
    places: torch.Tensor | None = None
    tower: TowerTokens | None = None
    sizes: torch.Tensor | None = None
    spots: torch.Tensor | None = None
    seen: Mapping[tuple[str, bool], torch.Tensor] = field(default_factory=dict)

    def pick(self, pick: Callable[[torch.Tensor], torch.Tensor]) -> Tokens:
        """The tokens that `pick` selects: pick(values [R, ...]) for each part."""
        return Tokens.together(lambda parts: pick(parts[0]), self)

    @staticmethod
    def together(join: Callable[[list[torch.Tensor]], torch.Tensor], *tokens: Tokens) -> Tokens:
        """Several Tokens joined: join([values [R, ...] of each]) for each part that the first of them has."""
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
    """How a merged token's positions are chosen: those of `k` members, by a rule of methods/positions.

    Args:
        positions: [axes, originals] int64 positions of each original token, for rules that look at them.
    """

    k: int
    rule: Rule
    positions: torch.Tensor | None = None


@torch.no_grad()
def merge(
    rounds: Sequence[Round], tokens: Tokens, holding: Holding | None = None, texts: Texts | None = None
) -> tuple[tuple[Round, ...], Tokens]:
    """Group the tokens of a stage; no gradient flows through this.

    Args:
        tokens: the tokens that the stage is given, with detached features.
        texts: the text of their prompts, if a method looks at it.

    Returns:
        the rounds with their groupings, and the tokens that the last one keeps. After a round their features are None,
        because Round.apply computes them.
    """
    given, done = tokens, []
    for number, step in enumerate(rounds):
        step, tokens = merge_round(step, tokens, given, holding, texts, last=number == len(rounds) - 1)
        done.append(step)
    return tuple(done), tokens


def merge_round(
    step: Round, tokens: Tokens, given: Tokens, holding: Holding | None, texts: Texts | None, last: bool
) -> tuple[Round, Tokens]:
    """One round of merge(): the round with its groupings, and the tokens that it keeps.

    Args:
        given: the tokens that the stage was given.
        last: whether no later round needs the features of the kept tokens.
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
    """A bucket with one grouping for each level, and the tokens that it keeps. The parts of tokens are [F, N, ...]."""
    groupings: list[Grouping] = []
    kept: list[Tokens] = []
    valid = bucket.valid
    if holding is not None and method.place == "tower":  # after which the tokens of a group have equal features
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
        # A merged token has the place of its representative.
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
    """The View of a bucket's cells that a method is shown: their tokens [F, N, ...], and what it needs of the vision
    tower, a decoder layer and the text.

    Args:
        part: the method that is shown the View. method: the step that it is a level of, usually the same method.
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
    """The round with cells for its videos' segments, found from the mean of each frame; the host waits for the device.

    Args:
        given: the tokens that the stage was given, which contain the videos' frames.
    """
    longest = max(video.frames for video in step.videos)
    counts = np.array([video.frames for video in step.videos])
    wanted = np.array([video.segments for video in step.videos])
    valid = None if (counts == longest).all() else np.arange(longest) < counts[:, None]
    if given.features is None:
        assert given.places is not None, "tokens on the host have places"
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
