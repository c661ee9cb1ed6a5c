"""The engine: a prompt's plan on the host, then features, positions, masks and labels of what is kept.

It knows tensors and spans, and nothing of any model family; ppe_npu.models brings it what a family calls its parts.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ppe_npu.blind import grouped_stages
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.layout import Arrangement, Budget, stage_layout
from ppe_npu.masks import causal_mask, picked_mask, seen_places
from ppe_npu.packing import packed as pack
from ppe_npu.plan import PlanOnDevice, PromptPlan
from ppe_npu.positions import check_channels, prompt_positions
from ppe_npu.report import CompressionReport
from ppe_npu.run import Prefill, Run
from ppe_npu.spans import PromptLayout, VisionTokens, find_spans
from ppe_npu.state import CacheState
from ppe_npu.stopwatch import Stopwatch
from ppe_npu.trace import Trace


@dataclass
class Compression:
    """One model's compression: its settings, what its family says of visual tokens, and the report of the last prompt.

    Args:
        channels: the axis (0 t, 1 h, 2 w) of each rotary channel of the half head dim.
        decoder_layers: how many the model has.
        keep_groups: whether `trace` shall hold the merges of the last prompt, for who wants to look at its groups.

    Raises:
        InputError: settings that do not fit the model.
    """

    config: CompressionConfig
    vision: VisionTokens
    channels: tuple[int, ...]
    decoder_layers: int
    report: CompressionReport | None = field(default=None, init=False)
    keep_groups: bool = field(default=False, init=False)
    trace: Trace | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        config = self.config
        check_channels(config.k, self.channels)
        beyond = [layer for layer in config.layers if layer >= self.decoder_layers]
        if beyond:
            raise InputError(
                f"layers={list(config.layers)}: this model has {self.decoder_layers} decoder layers, "
                f"0 to {self.decoder_layers - 1}"
            )
        if config.temporal_ratio is not None and self.vision.frames_apart:
            raise InputError(
                f"temporal_ratio={config.temporal_ratio}: this model sets text between the frames of a video, so that "
                "frames of one event have no place of their own; leave temporal_ratio out"
            )

    def __deepcopy__(self, memo: dict) -> "Compression":
        twin = Compression(self.config, self.vision, self.channels, self.decoder_layers)
        twin.keep_groups = self.keep_groups
        return twin

    def __reduce_ex__(self, protocol: int):
        raise TypeError(
            "a compressed model cannot be pickled: its methods would come back as its class has them; save it with "
            "save_pretrained(), or restore() it first"
        )

    @property
    def stages(self) -> int:
        """The part of the decoder before its first merge, and one part from each merge on."""
        return 1 + len(self.config.layers)

    # -- before the vision tower: the host reads ids, mask and grids once ---------------------------------------------

    def plan(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None,
        video_grid_thw: torch.Tensor | None,
        second_per_grid_ts: torch.Tensor | list[float] | None,
        position_ids: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        left: bool | None = None,
        packed: bool = False,
    ) -> PromptPlan:
        """Find the spans, number the prompt, and lay out what will be kept at every stage.

        Args:
            input_ids: [B, S]. attention_mask: [B, S], or [B, 1, S, S] (then no place is taken for padding), or None.
            image_grid_thw, video_grid_thw: [n, 3] patches. second_per_grid_ts: [n_videos].
            position_ids: [3, B, S] to use instead of the prompt's own numbering.
            start: [B] first position of each sample, of a prompt that continues a cache.
            left: where padding goes, see stage_layout; None keeps it on its side, on the left where there is none.
            packed: lay the batch out as one row of samples, without padding.

        Raises:
            InputError: shapes, placeholders and grids that disagree.
        """
        ids = input_ids.cpu().numpy()
        given = (_padding_mask(attention_mask, ids.shape), *map(_rows, (image_grid_thw, video_grid_thw)))
        seconds = _rows(second_per_grid_ts)
        watch = Stopwatch(torch.device("cpu"))  # only now: who reads the ids waits for all that the device did before
        layout = find_spans(ids, *given, seconds, self.vision)
        if position_ids is None:
            positions, following = prompt_positions(layout, self.vision, None if start is None else start.tolist())
        else:
            if tuple(position_ids.shape) != (3, *ids.shape):
                raise InputError(f"position_ids have shape {list(position_ids.shape)}, not {[3, *ids.shape]}")
            positions = position_ids.cpu().numpy()
            following = positions.max(axis=(0, 2)) + 1
        if left is None:
            left = not (layout.real[:, 0].all() and not layout.real[:, -1].all())
        stages = self._stage_layouts(layout, left)
        if packed:
            stages = pack(stages, *ids.shape)
        watch.stop()
        return PromptPlan(layout, stages, self.config.merges_before_llm, positions, following, watch)

    def _stage_layouts(self, layout: PromptLayout, left: bool) -> tuple:
        config, arrangement = self.config, Arrangement.of(layout)
        merged = Budget(config.budgets)
        first = Budget(config.budgets, config.events, config.event_tokens)
        gathered = Budget(lambda tokens: (tokens,))
        starts = [
            span.feature + t * span.frame_tokens for span in layout.spans for t in range(span.grid[0])
        ]  # the first stage's tokens are the vision tower's features
        stages = [stage_layout(arrangement, first if config.merges_before_llm else gathered, starts, left)]
        for _ in config.layers:
            stages.append(stage_layout(stages[-1].after, merged, left=left))
        return grouped_stages(stages, layout, config)

    # -- between the vision tower and the first decoder layer: no host sync -------------------------------------------

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
    ) -> Prefill:
        """Merge the features by the plan, assemble the compressed prompt, and lay out what later stages are given.

        Args:
            text_embeds: [T, C] embeddings of the text tokens that plan.stages[0].text names.
            features: [V, C] features of all images, then all videos; None without any.
            attention_mask: as given to the model; only a 4D one is read.
            past: of the cache that this prompt continues; the plan was made with its `following` as start.
            deepstack: of each of the first decoder layers [V, C], added to the visual tokens that leave it.
            ready_mask: make a padded stage's 4D mask here (bool, True = attend), for an attention that takes one.
            apart: give a padded stage its segments in place of a mask, for an attention that takes them.
        """
        watch, on = Stopwatch(text_embeds.device), plan.on(text_embeds.device)
        state = CacheState.empty(self.config.layers, *on.stages[0].real.shape[:1], on.following.device)
        state = state if past is None else past.repeated(len(on.following))
        fresh = past is None and (attention_mask is None or attention_mask.ndim != 4)
        apart = apart and fresh
        segments = tuple(stage.segments if apart or stage.numbers is not None else None for stage in on.stages)
        masks = _stage_masks(plan, on, attention_mask, ready_mask and fresh and not apart)
        following, rows = (on.following,) * self.stages, [None] * self.stages
        if self.config.positions == "renumber":
            following, rows = _renumbered(state, on, masks)
        state = state.then(
            tuple(stage.real for stage in on.stages),
            following,
            tuple(stage.after.padded for stage in plan.stages),
            plan.layout.real.shape[1],
            compressed=True,
        )
        self.trace = Trace(plan, self.config) if self.keep_groups else None
        masks = tuple(masks) if apart else _with_padding(masks, state)
        run = Prefill(self.config.layers, masks, rows, state, segments, self.config, on, watch, self.trace)
        run.begin(text_embeds, features, deepstack)
        self.report = CompressionReport.of(plan, self.config.layers, self.decoder_layers, watch)
        return run

    # -- later steps --------------------------------------------------------------------------------------------------

    def continue_text(self, state: CacheState, new: torch.Tensor, seen: int, padded: bool) -> Run:
        """Tokens that continue a cache one by one; no host sync.

        Args:
            new: [B, Q] bool, False where a new place is padding.
            seen: columns of input_ids that the new places stand for.
            padded: whether `new` may have a False.
        """
        counts, total = new.long().cumsum(1) - 1, new.sum(1)
        # Stages go on at one position, unless each was numbered anew.
        stages = self.stages if self.config.positions == "renumber" else 1
        rows = [(first[:, None] + counts).clamp_min(0)[None].expand(3, -1, -1) for first in state.following[:stages]]
        following = tuple(first + total for first in state.following[:stages])
        if stages < self.stages:
            rows, following = rows * self.stages, following * self.stages
        after = state.then((new,) * self.stages, following, (padded,) * self.stages, seen, compressed=False)
        none = (None,) * self.stages
        return Run(self.config.layers, _with_padding([*none], after), rows, after, none)


def _stage_masks(
    plan: PromptPlan, on: PlanOnDevice, given: torch.Tensor | None, ready: bool
) -> list[torch.Tensor | None]:
    """The 4D mask of every stage: picked from the one that was given, made where one is wanted for padding, or None."""
    masks = []
    for layout, stage in zip(plan.stages, on.stages):
        if given is not None and given.ndim == 4:
            given = picked_mask(given, stage.sources, stage.real)
            masks.append(given)
        else:
            masks.append(causal_mask(stage.real) if ready and layout.after.padded else None)
    return masks


def _renumbered(
    state: CacheState, on: PlanOnDevice, masks: list[torch.Tensor | None]
) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
    """The positions that follow each stage [B], and its rows [3, B, L]: 0, 1, 2, ... of what is there.

    A token's number is that of the tokens it sees before itself: a 4D mask knows which these are.
    """
    following, rows = [], []
    for first, stage, mask in zip(state.following, on.stages, masks):
        if stage.numbers is not None:
            numbers = stage.numbers
        else:
            numbers = (stage.real.long().cumsum(1) if mask is None else seen_places(mask)) - 1
        rows.append((first[:, None] + numbers).clamp_min(0)[None].expand(3, -1, -1))
        following.append(first + torch.where(stage.real, numbers, -1).amax(1) + 1)
    return tuple(following), rows


def _with_padding(masks: list[torch.Tensor | None], state: CacheState) -> tuple[torch.Tensor | None, ...]:
    """A stage without a ready mask gets the 2D mask of its cache, or none without padding: transformers would read a
    mask of ones back from the device."""
    return tuple(
        cached.long() if mask is None and padded else mask
        for mask, cached, padded in zip(masks, state.masks, state.padded)
    )


def _rows(values: torch.Tensor | list | None) -> list:
    return [] if values is None else values.tolist() if isinstance(values, torch.Tensor) else list(values)


def _padding_mask(mask: torch.Tensor | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """[B, S] nonzero at real tokens, or None; of a 4D mask only the form is checked."""
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
        raise InputError(f"attention_mask has shape {list(mask.shape)}, not that of input_ids {list(shape)}")
    return (mask != 0).cpu().numpy()
