"""Which tokens of an image or video were merged into which, read back from the merges of one forward pass.

Nothing is kept unless it is asked for:

    model.compression.keep_groups = True
    model(**inputs)                                 # or generate()
    model.compression.trace.visuals()               # for each image and video its groups, stage by stage
"""

from dataclasses import dataclass, field

import numpy as np

from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.merging import Grouped, Merge
from ppe_npu.plan import PromptPlan
from ppe_npu.spans import Span


@dataclass(frozen=True)
class Groups:
    """What one image or video has become at one stage.

    Args:
        layer: the decoder layer on whose entry it was merged; None: before the LLM.
        labels: [frames, height, width] int64, the merged token that each original token is part of; merged tokens are
            counted from 0, in the prompt's order.
        representatives: [G] int64, the original token (index in raster order, frame after frame) at each one's centre.
        held: [G, K] int64, the original tokens whose positions it keeps, in the order of the rows.
    """

    layer: int | None
    labels: np.ndarray
    representatives: np.ndarray
    held: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """[G] original tokens of each merged one."""
        return np.bincount(self.labels.reshape(-1), minlength=len(self.representatives))


@dataclass(frozen=True)
class Visual:
    """One image or video of a batch.

    Args:
        sample: row of the batch. modality: "image" or "video". source: its number among those of its kind.
        stages: its groups after each merge.
        events: [frames] int64, the event that each frame is part of, or None.
        renumbered: whether the prompt was numbered anew, so that no position of it is kept.
    """

    sample: int
    modality: str
    source: int
    stages: tuple[Groups, ...]
    events: np.ndarray | None
    renumbered: bool


@dataclass
class Trace:
    """The merges of one prompt (batch), as they come.

    Args:
        plan: the prompt's. config: what it was compressed by.
    """

    plan: PromptPlan
    config: CompressionConfig
    merges: list[Merge] = field(default_factory=list)

    def visuals(self) -> tuple[Visual, ...]:
        """Every image and video, in the order of the prompts; the host waits for the device.

        Raises:
            InputError: a list of ratios, with which a token is part of several merged ones.
        """
        if len(self.config.ratios) > 1:
            raise InputError(
                f"ratio={list(self.config.ratios)}: a token is part of several merged ones; give one ratio"
            )
        layout, width = self.plan.layout, self.plan.layout.real.shape[1]
        feature = np.zeros(layout.real.size, np.int64)  # of a place of the prompt
        for span in layout.spans:
            feature[span.sample * width + span.start + np.arange(span.tokens)] = span.feature + np.arange(span.tokens)
        place = center = np.arange(int(layout.visual.sum()))  # of each feature; the feature at the centre of each place
        stages, events = [], None
        for number, (merge, stage) in enumerate(zip(self.merges, self.plan.stages)):
            kept_of, representative, events_here = _moves(merge, len(center))
            events = events_here if number == 0 else events
            row = np.full(stage.rows.max() + 1, -1)
            row[stage.rows.reshape(-1)] = np.arange(stage.rows.size)
            place_of = row[len(stage.text) : len(stage.text) + len(representative)]  # of each kept token; -1: merged on
            place = place_of[kept_of[place]]
            stays = place_of >= 0
            center, before = np.zeros(stage.rows.size, np.int64), center
            center[place_of[stays]] = before[representative[stays]]
            held = np.zeros((stage.rows.size, merge.held.shape[1]), np.int64)
            held[place_of[stays]] = feature[merge.held.cpu().numpy()[stays]]
            if number > 0 or self.plan.merges_before_llm:
                stages.append((None if number == 0 else self.config.layers[number - 1], place, center, held))
        renumbered = self.config.positions == "renumber"
        return tuple(_visual(spans, stages, events, renumbered) for spans in _by_source(layout.spans))


def _moves(merge: Merge, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Of one merge: [inputs] the kept token that each one becomes part of, and [G] the one that represents each kept
    token (where events follow, the frames' tokens are counted before the events'); [inputs] the event, or None."""
    kept_of, representative, _ = _bucket_moves(merge.buckets, inputs)
    if merge.order is None:
        return kept_of, representative, None
    frames = len(representative)
    event_kept, event_representative, event = _bucket_moves(merge.events, frames)
    order = merge.order.cpu().numpy()
    standing = np.empty_like(order)
    standing[order] = np.arange(len(order))
    has_event = event_kept[kept_of] >= 0
    final = np.where(has_event, frames + standing[event_kept[kept_of]], kept_of)
    joined = np.concatenate([representative, representative[event_representative[order]]])
    return np.where(kept_of >= 0, final, -1), joined, np.where(has_event, event[kept_of], -1)


def _bucket_moves(buckets: Grouped, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[inputs] the kept token of each one, -1 for none; [G] the representative of each; [inputs] the cell of each."""
    kept_of, cell_of, representatives, kept, cells = np.full(inputs, -1), np.full(inputs, -1), [], 0, 0
    for bucket, groupings in buckets:
        tokens = bucket.tokens.cpu().numpy()
        valid = np.ones(tokens.shape, bool) if bucket.valid is None else bucket.valid.cpu().numpy()
        if groupings:
            labels, centers = groupings[0].labels.cpu().numpy(), groupings[0].representatives.cpu().numpy()
        else:
            centers = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
            labels = np.where(valid, centers, -1)
        slots = np.arange(centers.size) if bucket.kept is None else bucket.kept.cpu().numpy()
        number = np.full(centers.size, -1)
        number[slots] = kept + np.arange(len(slots))
        flat = np.arange(len(tokens))[:, None] * centers.shape[1] + labels
        kept_of[tokens[valid]] = number[flat[valid]]
        cell_of[tokens[valid]] = np.broadcast_to(cells + np.arange(len(tokens))[:, None], tokens.shape)[valid]
        representatives.append(np.take_along_axis(tokens, centers, axis=1).reshape(-1)[slots])
        kept, cells = kept + len(slots), cells + len(tokens)
    return kept_of, np.concatenate([np.zeros(0, np.int64), *representatives]), cell_of


def _by_source(spans: tuple[Span, ...]) -> list[list[Span]]:
    """The spans of each image or video: several, where a video's frames stand apart."""
    sources: dict[tuple[str, int], list[Span]] = {}
    for span in spans:
        sources.setdefault((span.modality, span.source), []).append(span)
    return list(sources.values())


def _visual(spans: list[Span], stages: list[tuple], events: np.ndarray | None, renumbered: bool) -> Visual:
    features = np.concatenate([span.feature + np.arange(span.tokens) for span in spans])
    grid = (sum(span.grid[0] for span in spans), *spans[0].grid[1:])
    groups = []
    for layer, place, center, held in stages:
        places, labels = np.unique(place[features], return_inverse=True)
        # An image's or video's features follow each other, also where its frames stand apart.
        groups.append(Groups(layer, labels.reshape(grid), center[places] - features[0], held[places] - features[0]))
    if events is not None:
        cells = events[features].reshape(grid)[:, 0, 0].tolist()
        order = list(dict.fromkeys(cells))  # of their first frames
        events = None if -1 in order else np.array([order.index(cell) for cell in cells])
    return Visual(spans[0].sample, spans[0].modality, spans[0].source, tuple(groups), events, renumbered)
