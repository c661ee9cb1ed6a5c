"""A prompt's plan: everything about it that is known before the vision tower has run.

It is made on the host and copied to the device before the tower starts, because uploads make the host wait for the
device's queue, and nothing between the tower and the first decoder layer should wait. If counts depend on the features
(late.py), the plan ends before the first such stage and grows as the stages are laid out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ppe_npu.backends import device as devices
from ppe_npu.backends.common import IGNORED
from ppe_npu.backends.device import Stopwatch
from ppe_npu.engine.late import Ahead
from ppe_npu.engine.layout import Arrangement, Stage
from ppe_npu.engine.merge import Holding, Tokens, merge
from ppe_npu.engine.pixels import Chosen
from ppe_npu.engine.rounds import Movable, as_tensor, upload
from ppe_npu.engine.spans import PromptLayout
from ppe_npu.errors import InputError
from ppe_npu.inspect.tower_work import TowerReport


@dataclass
class PromptPlan(Movable):
    """The plan of a batch of prompts.

    Args:
        layout: where the tokens of the prompts are.
        stages: the one before the decoder, then one for each layer on whose entry tokens are merged.
        positions: [axes, B * S + 1] (t, h, w) of every token of the prompt, then 0 for padding.
        visual: [V] index of each feature in the flattened [B * S]: all images, then all videos. V is the number of
            features that are merged, which is less than the number of visual tokens if a step at the pixels drops some.
        following: [B] the position after each sample's largest.
        deltas: [B, 1] `following` minus the number of the sample's tokens (transformers' rope_deltas).
        places: [V, 3] (frame, row, column) of each feature in its image or video, if a method on the device needs
            them; else None.
        watch: time spent on the plan, including its upload.
        tower_order: [V] index of each feature in the vision tower, if a method looks at the tower's blocks and the
            features have another order there (engine/tower.py); else None.
        ahead: the stages that are not laid out yet, or None.
        chosen: which visual tokens a step at the pixels keeps; None: all.
        in_tower: the work of the vision tower, once it has run, if a method works inside it.
        looking: time spent on what methods look at in the tower's blocks, once it has run, if any does.
        held: [V, K] index in the flattened [B * S] of the tokens whose positions each feature keeps (as members()
            returns them); None: its own.
        as_given: whether the output has the layout of the prompt.
        samples: rows of the batch in the decoder.
        known: for a plan that has grown, its number of stages and its `ahead` before there were features.
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
    looking: Stopwatch | None = None
    held: torch.Tensor | None = None
    as_given: bool = False
    samples: int = 1
    known: tuple[int, Ahead | None] | None = field(default=None, repr=False, compare=False)
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
        """From host arrays; positions: [axes, B, S], following: [B].

        Args:
            holding: with `chosen`, how a kept token's positions are chosen among those of the tokens it stands for.
        """
        positions = np.pad(positions.reshape(len(positions), -1), ((0, 0), (0, 1)))
        deltas = (following - layout.real.sum(axis=1))[:, None]
        length = layout.real.shape[1]
        spans = sorted(layout.spans, key=lambda span: span.feature)
        starts = [(span.sample * length + span.start, span.tokens) for span in spans]
        visual = np.concatenate([np.zeros(0, np.int64), *(first + np.arange(tokens) for first, tokens in starts)])
        rows, own, after, shifts = map(as_tensor, (positions, visual, following, deltas))
        held = None
        if chosen is not None:
            own, numbers = (upload(part, chosen.source.device) for part in (own, rows[:, own]))
            held = None if holding is None else own[chosen.held(holding.k, holding.rule, numbers)]
            own = own[chosen.places]
        order = None if tower_order is None else as_tensor(tower_order)
        as_given = any(stage.as_given for stage in stages)
        samples = len(stages[0].real) if ahead is None else ahead.samples
        given = layout, stages, rows, own, after, shifts, None, watch, order, ahead, chosen
        return cls(*given, held=held, as_given=as_given, samples=samples)

    def find_places(self) -> None:
        """Group the tokens for methods that look at places alone, as far as the host knows the places, and set `places`
        if a later method needs them on the device. Must be called before the plan is copied to a device."""
        ahead = [] if self.ahead is None else [method for _, methods in self.ahead.stages for method in methods]
        every = feature_places(self.layout)
        places = first = as_tensor(every if self.chosen is None else every[self.chosen.on_host])
        out: list[Stage] = []
        for number, stage in enumerate(self.stages):
            blind = list(itertools.takewhile(lambda step: step.method.on_host, stage.rounds))
            later = stage.rounds[len(blind) :]
            rounds, kept = merge(blind, Tokens(places=places))
            out.append(replace(stage, rounds=(*rounds, *later)))
            if later:  # from here on only the device knows which token is where
                out += self.stages[number + 1 :]
                ahead += [step.method for step in later]
                ahead += [step.method for after in out[number + 1 :] for step in after.rounds]
                break
            assert kept.places is not None, "a merge that gets places returns places"
            text, padding = first.new_zeros(len(stage.text), 3), first.new_zeros(1, 3)
            places = torch.cat([text, kept.places, padding])[stage.rows].flatten(0, 1)
        self.stages = tuple(out)
        self.places = first if any("places" in method.needs for method in ahead) else None

    def on(self, device: torch.device) -> PromptPlan:
        """The plan on a device, copied at the first call; on a CPU, outside torch.compile, the plan itself."""
        if devices.asks_freely(device):
            return self
        if device not in self._copies:
            self.watch.mark()
            self._copies[device] = self.to(device)
            self.watch.mark()
        return self._copies[device]

    def forget(self) -> None:
        """Drop the stages that were laid out from the features of an earlier pass."""
        assert self.known is not None, "a plan that has not grown has nothing to forget"
        stages, ahead = self.known
        for plan in (self, *self._copies.values()):
            plan.stages = plan.stages[:stages]
        self._look_ahead(ahead)

    def grow(self, stages: Sequence[Stage], ahead: Ahead | None) -> None:
        """Append stages that have now been laid out. `ahead`: those that still are not, or None."""
        self.known = self.known or (len(self.stages), self.ahead)
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
        """`ahead`, which cannot be None if a stage beyond those laid out is needed."""
        assert self.ahead is not None, "nothing comes after the last stage"
        return self.ahead

    def before(self, stage: int) -> Stage | Ahead:
        """The object whose `text` and `prompts` describe the batch before a stage: the Stage itself, or Ahead for the
        first one that is not laid out yet."""
        return self.stages[stage] if stage < len(self.stages) else self.unsettled

    @property
    def last(self) -> Arrangement:
        """The arrangement of the output's tokens."""
        return self.stages[-1].after

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """[B, S] labels -> [B, L] labels of the output: labels of text move with their tokens; all others are ignored.

        A sample's first label is ignored, too, if another place would have to predict it: padding on the left, or the
        end of another sample in a packed batch. If nothing was moved, all labels stay.
        """
        if labels.shape != self.layout.real.shape:
            given, wanted = list(labels.shape), list(self.layout.real.shape)
            raise InputError(f"labels have shape {given} but input_ids {wanted}: give one for each token")
        if self.as_given:
            return labels
        if self.stages[-1].borders is not None:
            labels = labels.reshape(1, -1)
        text, origins = (as_tensor(array).to(labels.device) for array in self.text_columns)
        return torch.where(text, labels.gather(1, origins), IGNORED)

    @property
    def text_columns(self) -> tuple[np.ndarray, np.ndarray]:
        """[B, L] bool, True at text of the output whose label counts, and [B, L] each place's column in the prompt."""
        text, borders = self.last.text.copy(), self.stages[-1].borders
        text[:, 1:] &= self.last.real[:, :-1]
        if borders is not None:
            text[0, [start for start in borders[:-1] if start < text.shape[1]]] = False
        return text, np.ascontiguousarray(self.last.origins)

    @property
    def places_of_columns(self) -> np.ndarray:
        """[B, S] index in the flattened output [B * L] for each column of the prompt, B * L where the output has
        nothing for it. Text has its own column; the kept tokens of an image or video are at the end of its run."""
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
        """[B, S] bool, the columns of the prompt whose labels count: text right after a column that the output has."""
        text = self.layout.real & ~self.layout.visual
        text[:, 0] = False
        text[:, 1:] &= (self.places_of_columns < self.last.real.size)[:, :-1]
        return text


def feature_places(layout: PromptLayout) -> np.ndarray:
    """[V, 3] (frame, row, column) of every visual token in its image or video, in the features' order."""
    places = np.zeros((int(layout.visual.sum()), 3), dtype=np.int64)
    frames: dict[tuple[str, int], int] = {}  # of each image or video so far: text may separate a video's frames
    for span in layout.spans:
        first = frames.get((span.modality, span.source), 0)
        frames[span.modality, span.source] = first + span.grid[0]
        grid = np.indices(span.grid).reshape(3, -1).T + np.array([first, 0, 0])
        places[span.feature : span.feature + span.tokens] = grid
    return places
