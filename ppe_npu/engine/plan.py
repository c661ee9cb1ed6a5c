"""A prompt's plan: all that is known of it before the vision tower has run.

It is made on the host, and copied to the device before the tower is started: uploads make the host wait for the
device's queue, and nothing between the tower and the first decoder layer shall wait. Where counts hang on the features
(late.py) it ends early, and grows as the stages are laid out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ppe_npu.backends.common import IGNORED
from ppe_npu.engine.late import Ahead
from ppe_npu.engine.layout import Arrangement, Stage
from ppe_npu.engine.merge import Holding, Tokens, merge
from ppe_npu.engine.pixels import Chosen
from ppe_npu.engine.rounds import Movable, as_tensor
from ppe_npu.engine.shown import Prompts
from ppe_npu.engine.spans import PromptLayout
from ppe_npu.inspect.report import Stopwatch
from ppe_npu.inspect.tower_work import TowerReport
from ppe_npu.methods.base import Method


@dataclass
class PromptPlan(Movable):
    """A batch of prompts before compression.

    Args:
        layout: where the prompt's tokens stand.
        stages: the one before the decoder, then one for each layer on whose entry tokens are merged.
        positions: [axes, B * S + 1] (t, h, w) of every token of the prompt, then those of padding, 0.
        visual: [V] index in the flattened [B * S] of each feature: of all images, then of all videos. V is how many the
            vision tower makes: fewer than there are visual tokens, where a step at the pixels chose some.
        following: [B] the position after each sample's largest.
        deltas: [B, 1] by how much that is more than the sample's tokens (transformers' rope_deltas).
        places: [V, 3] (frame, row, column) of each feature in its image or video, where a method on the device needs
            them; else None.
        watch: time spent on the plan, uploading it among it.
        tower_order: [V] where each feature stands in the vision tower, where a method looks at its blocks and these
            stand otherwise (engine/tower.py).
        ahead: what is not laid out yet, or None.
        chosen: which visual tokens the vision tower is given; None: all.
        in_tower: what the vision tower took, once it has run, where a method works inside it.
        held: [V, K] index in the flattened [B * S] of the tokens that speak for each feature (as members() has them);
            None: itself.
    """

    layout: PromptLayout
    stages: tuple[Stage, ...]
    positions: torch.Tensor
    visual: torch.Tensor
    following: torch.Tensor
    deltas: torch.Tensor
    places: torch.Tensor | None
    watch: Stopwatch
    tower_order: torch.Tensor | None = None
    ahead: Ahead | None = None
    chosen: Chosen | None = None
    in_tower: TowerReport | None = None
    held: torch.Tensor | None = None
    _copies: dict[torch.device, PromptPlan] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        layout: PromptLayout,
        stages: tuple[Stage, ...],
        positions: np.ndarray,
        following: np.ndarray,
        watch: Stopwatch,
        tower_order: np.ndarray | None = None,
        ahead: Ahead | None = None,
        chosen: Chosen | None = None,
        holding: Holding | None = None,
    ) -> PromptPlan:
        """From host arrays; positions: [axes, B, S], following: [B]. Groups that need no feature are found here.

        Args:
            holding: how the positions of what the vision tower is not given are kept, with `chosen`.
        """
        later = [method for _, methods in ahead.stages for method in methods] if ahead is not None else []
        stages, places = planned(stages, layout, later, chosen)
        positions = np.pad(positions.reshape(len(positions), -1), ((0, 0), (0, 1)))
        deltas = (following - layout.real.sum(axis=1))[:, None]
        visual, held = _visual_order(layout), None
        if chosen is not None:
            if holding is not None:
                held = as_tensor(visual[chosen.held(holding.k, holding.rule, positions[:, visual])])
            visual = visual[chosen.kept]
        rows, own, after, shifts = map(as_tensor, (positions, visual, following, deltas))
        order = None if tower_order is None else as_tensor(tower_order)
        return cls(layout, stages, rows, own, after, shifts, places, watch, order, ahead, chosen, held=held)

    def on(self, device: torch.device) -> PromptPlan:
        """The plan on a device; copied when first asked for."""
        if device not in self._copies:
            self.watch.mark()
            self._copies[device] = self.to(device)
            self.watch.mark()
        return self._copies[device]

    def __post_init__(self):
        self._start = len(self.stages), self.ahead

    def begin(self) -> None:
        """Forget the stages that were laid out by the features of a pass before."""
        known, ahead = self._start
        for plan in (self, *self._copies.values()):
            plan.stages = plan.stages[:known]
        self._look_ahead(ahead)

    def grow(self, stages: Sequence[Stage], ahead: Ahead | None) -> None:
        """With stages that have been laid out by now."""
        self.stages += tuple(stages)
        for device, plan in self._copies.items():
            plan.stages += tuple(stage.to(device) for stage in stages)
        self._look_ahead(ahead)

    def _look_ahead(self, ahead: Ahead | None) -> None:
        self.ahead = ahead
        for device, plan in self._copies.items():
            plan.ahead = None if ahead is None else ahead.to(device)

    @property
    def unsettled(self) -> Ahead:
        """`ahead` of a plan that is asked for a stage beyond those laid out."""
        assert self.ahead is not None, "nothing comes after the last stage"
        return self.ahead

    def text(self, stage: int) -> torch.Tensor:
        """[T] where the text stands before a stage, see Stage; of the first that is not laid out yet, too."""
        return self.stages[stage].text if stage < len(self.stages) else self.unsettled.text

    def prompts(self, stage: int) -> Prompts | None:
        """How the samples stand before it."""
        return self.stages[stage].prompts if stage < len(self.stages) else self.unsettled.prompts

    @property
    def samples(self) -> int:
        """Rows of the batch in the decoder."""
        return len(self.stages[0].real) if self.stages else self.unsettled.samples

    @property
    def last(self) -> Arrangement:
        """How tokens stand in the output."""
        return self.stages[-1].after

    @property
    def as_given(self) -> bool:
        """Whether the output stands as the prompt does."""
        return bool(self.stages) and self.stages[-1].as_given

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """[B, S] labels -> [B, L] of the output: text labels follow their tokens; all else is ignored.

        A sample's first label is ignored, too, where a place before it would have to predict it: padding on the left,
        or in a packed batch the end of another sample. Where nothing moved all labels stay.
        """
        if labels.shape != self.layout.real.shape:
            raise ValueError(f"labels have shape {list(labels.shape)} but input_ids {list(self.layout.real.shape)}")
        if self.as_given:
            return labels
        if self.stages[-1].borders is not None:
            labels = labels.reshape(1, -1)
        text, origins = (as_tensor(array).to(labels.device) for array in self.text_columns)
        return torch.where(text, labels.gather(1, origins), IGNORED)

    @property
    def text_columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every place of the output [B, L]: whether it is text whose label counts, and its column in the prompt."""
        text, borders = self.last.text.copy(), self.stages[-1].borders
        text[:, 1:] &= self.last.real[:, :-1]
        if borders is not None:
            text[0, [start for start in borders[:-1] if start < text.shape[1]]] = False
        return text, np.ascontiguousarray(self.last.origins)

    @property
    def places_of_columns(self) -> np.ndarray:
        """[B, S] where every column of the prompt stands in the flattened output [B * L], B * L where nothing of it is
        left: text in its own column, what is left of an image or video at the end of its run."""
        last, width = self.last, self.last.real.shape[1]
        places = np.full(self.layout.real.shape, last.real.size)
        sample, place = np.nonzero(last.text)
        places[sample, last.origins[sample, place]] = sample * width + place
        left: list[list[int]] = [[] for _ in self.layout.spans]
        for cell in last.cells:
            left[cell.span] += range(cell.sample * width + cell.start, cell.sample * width + cell.start + cell.tokens)
        for span, kept in zip(self.layout.spans, left):
            kept, end = kept[-span.tokens :], span.start + span.tokens
            places[span.sample, end - len(kept) : end] = kept
        return places

    @property
    def counted(self) -> np.ndarray:
        """[B, S] bool, the columns of the prompt whose labels count: text that follows a token of its sample."""
        text = self.layout.real & ~self.layout.visual
        text[:, 0] = False
        text[:, 1:] &= (self.places_of_columns < self.last.real.size)[:, :-1]
        return text


def planned(
    stages: tuple[Stage, ...], layout: PromptLayout, ahead: Sequence[Method] = (), chosen: Chosen | None = None
) -> tuple[tuple[Stage, ...], torch.Tensor | None]:
    """The stages with the groups of methods that look at places alone, as far as places are known on the host; and the
    places [V, 3], if a later method will have to find them on the device.

    Args:
        ahead: the methods of the stages that are not laid out yet.
        chosen: which tokens the vision tower is given.
    """
    methods = [step.method for stage in stages for step in stage.rounds]
    if not any("places" in method.needs for method in (*methods, *ahead)):
        return stages, None
    first = as_tensor(feature_places(layout) if chosen is None else feature_places(layout)[chosen.kept])
    places, out = first, []
    for number, stage in enumerate(stages):
        blind = list(itertools.takewhile(lambda step: step.method.on_host, stage.rounds))
        later = stage.rounds[len(blind) :]
        rounds, kept = merge(blind, Tokens(places=places))
        out.append(replace(stage, rounds=(*rounds, *later)))
        if later:  # from here on only the device knows what stands where
            steps = (*later, *(step for after in stages[number + 1 :] for step in after.rounds))
            wanted = any("places" in method.needs for method in (*(step.method for step in steps), *ahead))
            return (*out, *stages[number + 1 :]), first if wanted else None
        assert kept.places is not None, "places come out of a merge that places went into"
        text, padding = first.new_zeros(len(stage.text), 3), first.new_zeros(1, 3)
        places = torch.cat([text, kept.places, padding])[stage.rows].flatten(0, 1)
    return tuple(out), first if any("places" in method.needs for method in ahead) else None


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


def _visual_order(layout: PromptLayout) -> np.ndarray:
    length = layout.real.shape[1]
    spans = sorted(layout.spans, key=lambda span: span.feature)
    return np.concatenate(
        [np.zeros(0, np.int64), *(span.sample * length + span.start + np.arange(span.tokens) for span in spans)]
    )
