"""The engine: plans a prompt on the host, then makes features, positions, masks and labels of the kept tokens.

It handles tensors and spans, and contains nothing specific to a model family; ppe_npu.models passes that in.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, SupportsIndex

import numpy as np
import torch

from ppe_npu.backends.device import Stopwatch
from ppe_npu.config import CompressionConfig
from ppe_npu.engine.cache import CacheState, FixedState
from ppe_npu.engine.late import Ahead
from ppe_npu.engine.layout import Stage, Standing, lay_out, left_as_given
from ppe_npu.engine.masks import Masking
from ppe_npu.engine.merge import Holding
from ppe_npu.engine.pixels import Chosen, numbered_by_kept
from ppe_npu.engine.plan import PromptPlan
from ppe_npu.engine.positions import HALVES, axes_of, check_channels, position_rows, prompt_positions
from ppe_npu.engine.run import Prefill, Run
from ppe_npu.engine.shown import LAYER_NEEDS, OF_PROMPTS
from ppe_npu.engine.spans import PromptLayout, VisionTokens, find_spans
from ppe_npu.engine.tower import NEEDS, TowerBlocks, TowerTokens, tower_order
from ppe_npu.engine.tower_pass import inside_of
from ppe_npu.errors import InputError
from ppe_npu.inspect.report import CompressionReport
from ppe_npu.inspect.tower_work import Widths
from ppe_npu.inspect.trace import Trace
from ppe_npu.methods.base import Method
from ppe_npu.utils.recent import Recent


@dataclass
class Compression:
    """The compression of one model: its settings, the facts of its model family, and the report of the last prompt.

    Args:
        channels: the axis of each rotary channel in half a head: 0 (t), 1 (h) or 2 (w); with one axis always 0.
        decoder_layers: the number of decoder layers.
        pairs: which channels the rotary embedding rotates together, see rotary_table.
        layers: the first decoder layer of each stage after the first.
        stages: the number of stages: the one before the decoder, and one for each of `layers`.
        axes: the number of position axes: 3, or 1 for a decoder with a plain rotary embedding.
        tower: the vision tower's blocks that the methods look at. inside: the method that works inside it, or None.
        holding: how the positions that a merged token keeps are chosen; None unless positions="ppe".
        linear: whether the decoder has layers of linear attention, which take no mask but padding. routed: whether it
            is a mixture of experts, whose router logits may be requested. staged: whether it runs stage by stage.
        widths: the sizes of a block of the vision tower and of a decoder layer (None if one has no softmax attention),
            for counting operations if a method works inside the tower.
        last, last_scored: the plan of the last prompt, once it is laid out, and whether the pass returns its output in
            the prompt's own layout.
        watch: the time that grouping, merging and assembling that prompt took.
        kv_bytes: the bytes of the last prompt's cache, as in CompressionReport, once its KV cache is filled.
        keep_groups: whether `trace` keeps the merges of the last prompt, for callers that inspect the groups.

    Raises:
        InputError: the settings do not fit the model.
    """

    config: CompressionConfig
    vision: VisionTokens
    channels: tuple[int, ...]
    decoder_layers: int
    pairs: str = HALVES
    layers: tuple[int, ...] = field(init=False)
    stages: int = field(init=False)
    axes: int = field(init=False)
    tower: TowerBlocks = field(init=False)
    inside: Method | None = field(init=False)
    holding: Holding | None = field(init=False)
    linear: bool = field(default=False, repr=False)
    routed: bool = field(default=False, repr=False)
    staged: bool = field(default=False, repr=False)
    widths: tuple[Widths, Widths | None] | None = field(default=None, init=False, repr=False)
    last: PromptPlan | None = field(default=None, init=False, repr=False)
    last_scored: bool = field(default=False, init=False)
    watch: Stopwatch | None = field(default=None, init=False, repr=False)
    kv_bytes: int | None = field(default=None, init=False, repr=False)
    keep_groups: bool = field(default=False, init=False)
    trace: Trace | None = field(default=None, init=False, repr=False)
    _known: Recent = field(default_factory=Recent, init=False, repr=False)
    _report: CompressionReport | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        config = self.config
        self.layers, self.axes = config.entry_layers, axes_of(self.channels)
        self.stages = 1 + len(self.layers)
        assert config.k is not None, "a config always has a k"
        check_channels(config.k, self.channels)
        if any(layer >= self.decoder_layers for layer in self.layers):
            raise InputError(
                f"layers={list(self.layers)}: this model has {self.decoder_layers} decoder layers, "
                f"0 to {self.decoder_layers - 1}: give some of these"
            )
        for method in config.methods:
            named = method.name if config.temporal_ratio is None else f"temporal_ratio={config.temporal_ratio}"
            _check_place(method, self.vision, named)
        self.inside = inside_of(config.methods, self.vision)
        self.tower = TowerBlocks.wanted(config.methods, self.vision)
        self.holding = Holding(config.k, config.rule) if config.positions == "ppe" else None

    def with_config(self, config: CompressionConfig) -> "Compression":
        """A new Compression of the same model with other settings; it has seen no prompt yet."""
        of_model = (self.channels, self.decoder_layers, self.pairs, self.linear, self.routed, self.staged)
        return Compression(config, self.vision, *of_model)

    def __deepcopy__(self, memo: dict) -> "Compression":
        twin = self.with_config(self.config)
        twin.keep_groups, twin.widths = self.keep_groups, self.widths
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex):
        raise TypeError(
            "a compressed model cannot be pickled, because its replaced methods would be lost: save it with "
            "save_pretrained(), or restore() it first"
        )

    @property
    def report(self) -> CompressionReport | None:
        """What was done to the last prompt, or None until it is laid out. The report is made when it is read."""
        if self.watch is None or self.last is None:
            return None
        # Made again once the cache is filled, because a report that was read earlier has no kv_bytes.
        if self._report is None or self._report.kv_bytes != self.kv_bytes:
            self._report = CompressionReport.of(self.last, self.layers, self.decoder_layers, self.watch, self.kv_bytes)
        return self._report

    # -- before the vision tower: the host reads ids, mask and grids once ---------------------------------------------

    def plan(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_grid_thw: torch.Tensor | list | None,
        video_grid_thw: torch.Tensor | list | None,
        second_per_grid_ts: torch.Tensor | list[float] | None,
        position_ids: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        left: bool | None = None,
        packed: bool = False,
        labels: torch.Tensor | None = None,
        prompt: int | None = None,
        chosen: Chosen | None = None,
    ) -> PromptPlan:
        """Find the spans, number the prompt, and lay out what will be kept at every stage.

        Args:
            input_ids: [B, S]. attention_mask: [B, S], or [B, 1, S, S] (then no token counts as padding), or None.
            image_grid_thw, video_grid_thw: [n, 3] patches, or None, as in find_spans. second_per_grid_ts: [n_videos].
            position_ids: positions that replace the computed ones, in any form that position_rows takes.
            start: [B] first position of each sample if the prompt continues a cache. prompt: as in find_spans.
            left: whether padding goes to the left, see lay_out; None keeps it on its side (left if there is none).
            packed: lay the batch out as one row of samples, without padding. chosen: what a step at the pixels keeps.
            labels: [B, S] in training: what methods see as a prompt's text and last token then ends before the answer.

        Raises:
            InputError: shapes, placeholders or grids disagree.
        """
        ids = input_ids.cpu().numpy()
        mask = _padding_mask(attention_mask, ids.shape)
        items = image_grid_thw, video_grid_thw, second_per_grid_ts
        given = tuple(part.tolist() if isinstance(part, torch.Tensor) else part for part in items)  # for the key below
        watch = Stopwatch(torch.device("cpu"))  # starts only now: reading the ids waits for earlier work on the device
        others = position_ids, start, labels if self.config.needs & OF_PROMPTS else None, chosen
        prompts = ids, mask, *given, self.vision, prompt, self.config.keeps_all and not packed
        make = partial(self._laid, prompts, left, packed, watch, *others)
        # The plan does not depend on which words are between images and videos.
        places = (ids == self.vision.image_token_id, ids == self.vision.video_token_id, mask)
        stands = (None if part is None else part.tobytes() for part in places)
        key = ids.shape, *stands, repr(given), prompt, left, packed
        plan = self._known.made(key, make) if all(value is None for value in others) else make()
        plan = replace(plan, watch=watch, _copies={})  # its parts are shared between plans and never modified
        watch.mark()
        return plan

    def _laid(
        self,
        prompts: tuple[Any, ...],
        left: bool | None,
        packed: bool,
        watch: Stopwatch,
        position_ids: torch.Tensor | None,
        start: torch.Tensor | None,
        labels: torch.Tensor | None,
        chosen: Chosen | None,
    ) -> PromptPlan:
        """A new plan. `prompts` are the arguments of find_spans; the others are as in plan()."""
        layout = find_spans(*prompts)
        standing = Standing.of(layout, labels, chosen)
        with torch.inference_mode(False):  # or a plan cached under inference mode would fail in training
            numbers = self._positions(layout, position_ids, start, chosen)
            stages, ahead = self._stages(layout, standing, left, packed)
            # Where each token is in a tower that works window by window, if a method needs to know.
            window = self.vision.window if self.config.needs & NEEDS else 0
            order = tower_order(layout, window, chosen) if window else None
            plan = PromptPlan.of(layout, stages, *numbers, watch, order, ahead, chosen, self.holding)
            if "places" in self.config.needs:
                plan.find_places()
        return plan

    def _stages(
        self, layout: PromptLayout, standing: Standing, left: bool | None, packed: bool
    ) -> tuple[tuple[Stage, ...], Ahead | None]:
        """The stages that can be laid out already, and those that cannot, or None if there are none."""
        if self.config.keeps_all and not packed:
            return left_as_given(layout), None
        right = bool(layout.real[:, 0].all() and not layout.real[:, -1].all())
        left = not right if left is None else left
        stages, standing = lay_out(standing, self.config.stages, left, packed)
        rest = self.config.stages[len(stages) :]
        return stages, Ahead.of(standing, rest, left, packed) if rest else None

    def _positions(
        self, layout: PromptLayout, given: torch.Tensor | None, start: torch.Tensor | None, chosen: Chosen | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """[axes, B, S] positions of the prompt, and [B] the position that follows each sample."""
        if given is not None:
            positions = position_rows(given, self.axes, layout.real.shape).cpu().numpy()
            return positions, positions.max(axis=(0, 2)) + 1
        if self.config.keeps_all and not layout.spans and start is None:
            # Padding is numbered, too, as in transformers, so that labels predicted from padding give the same loss.
            samples, length = layout.real.shape
            places = np.arange(length)
            return np.broadcast_to(places, (self.axes, samples, length)), np.full(samples, length)
        first = None if start is None else start.tolist()
        kept = chosen.on_host if chosen is not None and numbered_by_kept(self.config.at_pixels) else None
        return prompt_positions(layout, self.vision, first, self.axes, kept)

    # -- between the vision tower and the first decoder layer: no host sync, except for late counts -------------------

    def prefill(
        self,
        plan: PromptPlan,
        text_embeds: torch.Tensor,
        features: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        past: CacheState | None = None,
        deepstack: tuple[torch.Tensor, ...] = (),
        ready_mask: bool = False,
        apart: bool = False,
        tower: TowerTokens | None = None,
    ) -> tuple[Prefill, torch.Tensor]:
        """Merge the features as planned: the pass through the stages, and [B, L, C] what its first layer is given.

        Args:
            text_embeds: [T, C] embeddings of the text tokens at the indices plan.before(0).text.
            features: [V, C] features of all images, then of all videos, in the order of plan.visual; None: no features.
            attention_mask: the one given to the model; only a 4D one is read.
            past: state of the cache that this prompt continues; the plan was made with its `following` as start.
            deepstack: for each of the first decoder layers [V, C], added to the visual tokens of its output.
            ready_mask: make the 4D mask of a padded stage here (bool, True = attend), for attention that takes one.
            apart: give a padded stage segments instead of a mask, for attention that takes them.
            tower: the numbers that the vision tower's blocks give for the V features, if a method looks at them.
        """
        if plan.known is not None:
            plan.forget()
        watch, on = Stopwatch(text_embeds.device), plan.on(text_embeds.device)
        if past is None:
            state = CacheState.empty(self.layers, plan.samples, on.following.device)
        else:
            state = past.repeated(len(on.following))
        given = attention_mask if attention_mask is not None and attention_mask.ndim == 4 else None
        fresh = past is None and given is None
        apart, ready_mask = apart and fresh, ready_mask and fresh and not apart and not plan.as_given
        masking = Masking(given, ready_mask, apart)
        self.trace = Trace(plan, self.config) if self.keep_groups else None
        self.watch = self._report = self.kv_bytes = None
        run = Prefill(self.layers, state, self, plan, on, masking, watch, self.trace)
        return run, run.begin(text_embeds, features, deepstack, tower)

    # -- later steps --------------------------------------------------------------------------------------------------

    def continue_text(
        self,
        state: CacheState | FixedState,
        new: torch.Tensor,
        seen: int,
        padded: bool,
        position_ids: torch.Tensor | None = None,
    ) -> Run:
        """The pass of Q tokens that continue a cache and are not merged; no host sync. With a FixedState Q is 1.

        Args:
            new: [B, Q] bool, False where a new place is padding.
            seen: how many columns of input_ids the new places stand for.
            padded: whether `new` may contain False.
            position_ids: positions of the new places, in any form that position_rows takes; None: the next ones.

        Raises:
            InputError: position_ids are given, but the stages renumber their tokens.
        """
        if position_ids is not None and self.config.positions == "renumber" and not self.config.keeps_all:
            raise InputError('position_ids are given, but positions="renumber" sets its own: leave them out')
        counts: torch.Tensor = torch.arange(new.shape[1], device=new.device)
        total: torch.Tensor | int = new.shape[1]
        if padded:
            counts, total = new.long().cumsum(1) - 1, new.sum(1)
        # All stages continue at the same position, unless each was renumbered.
        stages = self.stages if self.config.positions == "renumber" else 1
        rows = [
            (first[:, None] + counts).clamp_min(0)[None].expand(self.axes, -1, -1) for first in state.following[:stages]
        ]
        following = tuple(first + total for first in state.following[:stages])
        if position_ids is not None:
            rows = [position_rows(position_ids, self.axes, tuple(new.shape)).to(new.device)]
            following = (rows[0].amax(dim=(0, 2)) + 1,)
        if stages < self.stages:
            rows, following = rows * self.stages, following * self.stages
        if isinstance(state, FixedState):
            return Run.of_step(state, new, rows, following)
        after = state.then((new,) * self.stages, following, (padded,) * self.stages, seen, compressed=False)
        masks = [cached.long() if padded else None for cached, padded in zip(after.masks, after.padded)]
        return Run(self.layers, masks, rows, after, (None,) * self.stages, after.sizes)


def _check_place(method: Method, vision: VisionTokens, subject: str) -> None:
    """Raise InputError if the model has no place for a step, or cannot provide what it looks at."""
    if method.place == "pixels" and vision.pixels is None:
        raise InputError(f"{method.name}: a step at the pixels is not built for this family yet; leave it out")
    if method.place == "tower" and not (vision.tower_blocks or (method.restores and vision.tile_blocks)):
        raise InputError(f"{method.name}: a step inside the tower is not built for this family yet; leave it out")
    inside = sorted(method.needs & LAYER_NEEDS)
    if inside and method.place != "layer":
        raise InputError(f"{method.name} looks at {', '.join(inside)}, which a decoder layer has: give a layer")
    if method.scope == "segment" and vision.frames_apart:
        raise InputError(
            f"{subject}: this model puts text between the frames of a video, so that the frames of an event have no "
            f"common place: leave {subject} out"
        )


def _padding_mask(mask: torch.Tensor | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """[B, S] bool, True at real tokens; None without a mask, or for a 4D one, of which only the form is checked."""
    if mask is None:
        return None
    if mask.ndim == 4:
        fits = mask.shape[0] == shape[0] and tuple(mask.shape[2:]) == (shape[1], shape[1])
        if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
            raise InputError(
                f"attention_mask is {mask.dtype} {list(mask.shape)}: a 4D one must be bool (True = attend) or floating "
                f"point (added), [{shape[0]}, heads or 1, {shape[1]}, {shape[1]}]"
            )
        return None
    if tuple(mask.shape) != shape:
        raise InputError(f"attention_mask is {list(mask.shape)}: give {list(shape)}, one entry per token of input_ids")
    return (mask != 0).cpu().numpy()
