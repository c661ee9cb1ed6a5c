"""Which tokens of an image or video were merged into which, read back from the merges of one forward pass.

Nothing is recorded unless this is enabled:

    model.compression.keep_groups = True
    model(**inputs)                                 # or generate()
    model.compression.trace.visuals()               # the groups of each image and video, stage by stage
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ppe_npu.config import CompressionConfig
from ppe_npu.engine.plan import PromptPlan
from ppe_npu.engine.rounds import Round
from ppe_npu.engine.spans import Span
from ppe_npu.errors import InputError


@dataclass(frozen=True)
class Groups:
    """The groups of one image or video after one stage.

    Args:
        layer: the decoder layer on whose entry it was merged; None: before the LLM; "pixels": before the vision tower.
        labels: [frames, height, width] int64, the merged token that each original token is part of; merged tokens are
            counted from 0, in the prompt's order; -1 where it was dropped.
        representatives: [G] int64, each merged token's representative (an original token, by its index in raster order,
            frame after frame).
        held: [G, K] int64, the original tokens whose positions it keeps, in the order of the rows.
    """

    layer: int | str | None
    labels: np.ndarray
    representatives: np.ndarray
    held: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """[G] the number of original tokens in each merged token."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.representatives))


@dataclass(frozen=True)
class Visual:
    """One image or video of a batch.

    Args:
        sample: row of the batch. modality: "image" or "video". source: its index among the batch's images, or videos.
        stages: its groups after each merge.
        events: [frames] int64, the event that each frame is part of, or None.
        renumbered: whether the prompt was renumbered, so that no original position is kept.
    """

    sample: int
    modality: str
    source: int
    stages: tuple[Groups, ...]
    events: np.ndarray | None
    renumbered: bool


@dataclass
class Trace:
    """The merges of one prompt (batch), recorded as they happen.

    Args:
        plan: the prompt's plan. config: the settings of its compression.
        merges: for each stage, its rounds with their groups, and [G, K] the original tokens that each kept one holds.
    """

    plan: PromptPlan
    config: CompressionConfig
    merges: list[tuple[tuple[Round, ...], torch.Tensor]] = field(default_factory=list)

    def visuals(self) -> tuple[Visual, ...]:
        """Every image and video, in the order of the prompts; the host waits for the device.

        Raises:
            InputError: there is a list of ratios, with which a token is part of several merged tokens.
        """
        if any(len(method.levels) > 1 for method in self.config.methods):
            raise InputError(
                f"ratio={list(self.config.ratios)}: with several ratios a token is part of several merged "
                "ones; give one ratio"
            )
        layout, width = self.plan.layout, self.plan.layout.real.shape[1]
        feature = np.zeros(layout.real.size, np.int64)  # of each place in the prompt
        for span in layout.spans:
            feature[span.sample * width + span.start + np.arange(span.tokens)] = span.feature + np.arange(span.tokens)
        # For each feature the place of its token, -1 if it was dropped; for each place its representative's feature.
        place = center = np.arange(int(layout.visual.sum()))
        stages, events, chosen = [], None, self.plan.chosen
        if chosen is not None:
            place, center = (part.cpu().numpy() for part in (chosen.labels, chosen.places))
            held = center[:, None] if self.plan.held is None else feature[self.plan.held.cpu().numpy()]
            stages.append(("pixels", place, center, held))
        for (rounds, kept_held), stage in zip(self.merges, self.plan.stages):
            representative = np.arange(len(center))
            for step in rounds:
                kept_of, representatives, cell_of = _moves(step, len(representative))
                if step.videos:
                    events = _through(cell_of, place)
                place, representative = _through(kept_of, place), representative[representatives]
            # Where each kept token stands; a stage in the decoder that has no round "keeps" text and padding, too.
            standing = np.full(len(stage.text) + len(representative) + 1, -1)
            standing[stage.rows.numpy().reshape(-1)] = np.arange(stage.rows.numel())
            standing = standing[len(stage.text) : -1]
            place, before, there = _through(standing, place), center, standing >= 0
            center = np.zeros(stage.rows.numel(), np.int64)
            center[standing[there]] = before[representative[there]]
            held = np.zeros((stage.rows.numel(), kept_held.shape[1]), np.int64)
            held[standing[there]] = feature[kept_held.cpu().numpy()[there]]
            if stage.rounds:
                stages.append((stage.layer, place, center, held))
        renumbered = self.config.positions == "renumber"
        return tuple(_visual(spans, stages, events, renumbered) for spans in _by_source(layout.spans))


def _through(step: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The places to which `step` moves the tokens at `place`; -1 stays -1."""
    return np.where(place >= 0, step[place], -1)


def _moves(step: Round, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one round does: [inputs] the kept token that each input becomes part of, -1 for none; [G] the input that is
    each kept token's representative; [inputs] the cell of each input, -1 for none."""
    kept_of, cell_of, representatives, kept, cells = np.full(inputs, -1), np.full(inputs, -1), [], 0, 0
    for bucket in step.buckets:
        (grouping,) = bucket.groupings
        tokens, labels, centers = (
            part.cpu().numpy() for part in (bucket.tokens, grouping.labels, grouping.representatives)
        )
        grouped = labels >= 0
        slots = np.arange(centers.size) if bucket.kept is None else bucket.kept.cpu().numpy()
        number = np.full(centers.size, -1)
        number[slots] = kept + np.arange(len(slots))
        flat = np.arange(len(tokens))[:, None] * centers.shape[1] + labels
        kept_of[tokens[grouped]] = number[flat[grouped]]
        cell_of[tokens[grouped]] = np.broadcast_to(cells + np.arange(len(tokens))[:, None], tokens.shape)[grouped]
        representatives.append(np.take_along_axis(tokens, centers, axis=1).reshape(-1)[slots])
        kept, cells = kept + len(slots), cells + len(tokens)
    representative = np.concatenate([np.zeros(0, np.int64), *representatives])
    if step.order is not None:
        order = step.order.cpu().numpy()
        standing = np.empty_like(order)
        standing[order] = np.arange(len(order))
        kept_of, representative = _through(standing, kept_of), representative[order]
    if step.rest is not None:
        rest = step.rest.cpu().numpy()
        kept_of = np.where(kept_of >= 0, kept_of + len(rest), -1)
        kept_of[rest], representative = np.arange(len(rest)), np.concatenate([rest, representative])
    return kept_of, representative, cell_of


def _by_source(spans: tuple[Span, ...]) -> list[list[Span]]:
    """The spans of each image or video: several, if text separates a video's frames."""
    sources: dict[tuple[str, int], list[Span]] = {}
    for span in spans:
        sources.setdefault((span.modality, span.source), []).append(span)
    return list(sources.values())


def _visual(spans: list[Span], stages: list[tuple], events: np.ndarray | None, renumbered: bool) -> Visual:
    features = np.concatenate([span.feature + np.arange(span.tokens) for span in spans])
    grid = (sum(span.grid[0] for span in spans), *spans[0].grid[1:])
    groups = []
    for layer, place, center, held in stages:
        places = np.unique(place[features])
        places = places[places >= 0]
        labels = np.where(place[features] >= 0, np.searchsorted(places, place[features]), -1)
        # The features of an image or video are consecutive, even if text separates its frames.
        groups.append(Groups(layer, labels.reshape(grid), center[places] - features[0], held[places] - features[0]))
    if events is not None:
        cells = events[features].reshape(grid)[:, 0, 0].tolist()
        order = list(dict.fromkeys(cells))  # by their first frames
        events = None if -1 in order else np.array([order.index(cell) for cell in cells])
    return Visual(spans[0].sample, spans[0].modality, spans[0].source, tuple(groups), events, renumbered)
