"""One forward pass through the decoder: the inputs of each stage's layers, and the merges between the stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from ppe_npu.backends.device import Stopwatch
from ppe_npu.config import CompressionConfig
from ppe_npu.engine.cache import CacheState, FixedState, joined_sizes
from ppe_npu.engine.layout import Stage
from ppe_npu.engine.masks import Masking, padded_causal_mask, picked_mask, seen_places
from ppe_npu.engine.merge import Holding, Tokens, merge
from ppe_npu.engine.packing import Segments
from ppe_npu.engine.plan import PromptPlan
from ppe_npu.engine.rotary import held_rows
from ppe_npu.engine.rounds import Round
from ppe_npu.engine.shown import Prompts, Texts, layer_needs
from ppe_npu.engine.tower import TowerTokens
from ppe_npu.inspect.trace import Trace

if TYPE_CHECKING:
    from ppe_npu.engine.compression import Compression

# Computes what methods look at in a decoder layer from the tokens that the layer is about to be given:
# (needs, prompts) -> for each field of the View that these needs name, [R, ...] values at every place of the flattened
# batch; for the fields about text, [S, W, ...] values of each sample's text.
LayerLook = Callable[[frozenset[str], Prompts | None], dict[str, torch.Tensor]]


@dataclass
class Run:
    """A pass that merges nothing.

    Args:
        layers: the first decoder layer of each stage after the first.
        masks: for each stage [B, cached + new] int64; [B, heads or 1, L, L] if a 4D mask was given or made; None
            without padding, or if segments leave the padding out.
        rows: for each stage [R, B, L] positions, R = axes or axes * K; None until they are known.
        state: the state of the cache after this pass.
        segments: for each stage, the segments of attention in a packed batch, or in a padded one without a mask.
        sizes: for each stage [B, cached + new] int64, how many tokens each place counts for in attention; None: one.
    """

    layers: tuple[int, ...]
    masks: Sequence[torch.Tensor | None]
    rows: Sequence[torch.Tensor | None]
    state: CacheState | FixedState
    segments: Sequence[Segments | None]
    sizes: Sequence[torch.Tensor | None]

    merges = False  # whether stages merge, and look into layers

    @classmethod
    def of_step(
        cls, state: FixedState, new: torch.Tensor, rows: Sequence[torch.Tensor], following: Sequence[torch.Tensor]
    ) -> "Run":
        """The pass of one more token [B, 1] with a cache of fixed length."""
        state = state.then(new, torch.stack(tuple(following)))
        none = (None,) * len(rows)
        sizes = none if state.sizes is None else state.sizes.unbind()
        return cls(state.layers, state.masks.long().unbind(), rows, state, none, sizes)

    def past_length(self, stage: int) -> int:
        """How many places the cache of a stage's layers held before this pass."""
        rows = self.rows[stage]
        assert rows is not None, "rows are missing only during a prompt's pass"
        return self.state.masks[stage].shape[1] - rows.shape[-1]

    def is_late(self, stage: int) -> bool:
        """Whether the layout of this stage depends on the features that enter it."""
        return False

    def enter(self, stage: int, hidden: torch.Tensor, look: LayerLook | None = None) -> torch.Tensor:
        """The tokens that a stage starts with, from the output of the stage before: [B, L, C] -> [B, L', C].

        Args:
            look: computes what methods look at in the layer that comes next.
        """
        return hidden

    def pass_by(self, layer: int, look: LayerLook | None) -> None:
        """Called before a decoder layer runs, to record what methods on entry of the next layer look at in this one."""

    def leave(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """[B, L, C] what the next layer is given, from a decoder layer's output [B, L, C]."""
        return hidden


@dataclass
class Prefill(Run):
    """The pass of a prompt, which is merged before the LLM and on entry of each later stage.

    Args:
        masks, rows, segments, sizes: as in Run; they grow as stages are laid out.
        plan: the prompt's plan on the host; it grows if counts depend on the features.
        on: the same plan on the device.
        compression: the Compression that started the pass. Its `last` and `watch` are set once everything is laid out,
            which is usually before the decoder.
        trace: records every merge, if it is given.
    """

    masks: list[torch.Tensor | None] = field(default_factory=list, init=False)
    rows: list[torch.Tensor | None] = field(default_factory=list, init=False)
    segments: list[Segments | None] = field(default_factory=list, init=False)
    sizes: list[torch.Tensor | None] = field(default_factory=list, init=False)
    compression: "Compression"
    plan: PromptPlan
    on: PromptPlan
    masking: Masking
    watch: Stopwatch
    trace: Trace | None = None
    past: CacheState = field(init=False)  # the cache's state before this pass
    config: CompressionConfig = field(init=False)
    holding: Holding | None = field(init=False)  # which positions a merged token keeps
    # Of the current stage: the data of each place [B * L, ...], and by layer what must still be added to that layer's
    # output [B, L, C].
    _tokens: Tokens = field(default_factory=Tokens, init=False)
    _deepstack: dict[int, torch.Tensor] = field(default_factory=dict, init=False)
    _following: list[torch.Tensor] = field(default_factory=list, init=False)
    # What the next stage looks at in the layer before it, as Tokens.seen.
    _passed: dict[tuple[str, bool], torch.Tensor] = field(default_factory=dict, init=False)
    _single: bool = field(default=True, init=False)  # whether each token so far has the features of one original

    merges = True

    def past_length(self, stage: int) -> int:
        return self.past.masks[stage].shape[1]

    def begin(
        self,
        text_embeds: torch.Tensor,
        features: torch.Tensor | None,
        deepstack: tuple[torch.Tensor, ...],
        tower: TowerTokens | None = None,
    ) -> torch.Tensor:
        """[B, L, C] what the LLM is given, after the merge before it.

        Args:
            text_embeds: [T, C]. features and each of deepstack: [V, C]. tower: of V features.
        """
        assert isinstance(self.state, CacheState), "a prompt is merged before its cache is fixed"
        self.past, self.config, holding = self.state, self.compression.config, self.compression.holding
        self.holding = holding and replace(holding, positions=self.on.positions)
        if features is None:
            features = text_embeds.new_zeros(0, text_embeds.shape[-1])
        visual, counted = self.on.visual, self.config.proportional_attention or "sizes" in self.config.needs
        sizes = torch.ones_like(visual) if counted else None
        prompts = self.on.before(0).prompts
        spots = None if prompts is None else visual
        held = visual[:, None] if self.on.held is None else self.on.held
        given = Tokens(features.detach(), held, self.on.places, tower, sizes, spots)
        text = {} if prompts is None else {("text", False): prompts.of_text(text_embeds, prompts.text)}
        stage, rounds, kept = self._merge(0, given, text)
        embeds = _arranged(stage, rounds, text_embeds, features)
        none = torch.zeros_like(text_embeds)
        self._deepstack = {
            layer: _arranged(stage, rounds, none, part, padding=0.0) for layer, part in enumerate(deepstack)
        }
        unknown = replace(kept, features=None).pick(lambda part: part.new_zeros(len(stage.text), *part.shape[1:]))
        self._hold(0, replace(unknown, held=stage.text[:, None]), kept)
        self.watch.mark()
        return embeds

    def is_late(self, stage: int) -> bool:
        return stage >= len(self.on.stages)

    def deepstack(self) -> tuple[torch.Tensor, ...]:
        """For each of the first decoder layers [B, L, C] what is added to its output, laid out as the current stage."""
        return tuple(self._deepstack.values())

    def enter(self, stage: int, hidden: torch.Tensor, look: LayerLook | None = None) -> torch.Tensor:
        if stage == 0:
            return hidden
        self.watch.mark()
        tokens, prompts = hidden.flatten(0, 1), self.on.before(stage).prompts
        seen = self._passed | self._looked(stage, look, before=False)
        self._passed = {}
        text = {name: seen.pop(name) for name in list(seen) if name[0].startswith("text")}
        if prompts is not None:
            text["text", False] = prompts.of_text(tokens, prompts.text_places)
        spots = None if prompts is None else torch.arange(len(tokens), device=tokens.device)
        given = replace(self._tokens, features=tokens.detach(), seen=seen, spots=spots)
        on, rounds, kept = self._merge(stage, given, text)

        def merged(tokens: torch.Tensor, padding: float = 1.0) -> torch.Tensor:
            return _arranged(on, rounds, tokens.index_select(0, on.text), tokens, padding)

        hidden = merged(tokens)
        # The mean of sums is the sum of means, so what must still be added is merged in the same way as the tokens.
        self._deepstack = {layer: merged(part.flatten(0, 1), 0.0) for layer, part in self._deepstack.items()}
        self._hold(stage, self._tokens.pick(lambda part: part.index_select(0, on.text)), kept)
        self.watch.mark()
        return hidden

    def pass_by(self, layer: int, look: LayerLook | None) -> None:
        for stage, first in enumerate(self.layers, start=1):
            if first == layer + 1 and layer_needs(self.config.stages[stage][1], before=True):
                self.watch.mark()
                self._passed = self._looked(stage, look, before=True)
                self.watch.mark()

    def _looked(self, stage: int, look: LayerLook | None, before: bool) -> dict[tuple[str, bool], torch.Tensor]:
        """What the methods of a stage look at in its first layer, or in the layer before that, as in Tokens.seen."""
        needs = layer_needs(self.config.stages[stage][1], before)
        if not needs or look is None:
            return {}
        seen = look(needs, self.on.before(stage).prompts)
        return {(name, before): part for name, part in seen.items()}

    def leave(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        added = self._deepstack.pop(layer, None)
        return hidden if added is None else hidden + added.to(hidden.dtype)

    def _merge(
        self, number: int, tokens: Tokens, text: dict[tuple[str, bool], torch.Tensor]
    ) -> tuple[Stage, tuple[Round, ...], Tokens]:
        """Group a stage's tokens: the stage, its rounds with their groupings, and the tokens that the last one keeps.

        Args:
            text: as Texts.values.
        """
        prompts = self.on.before(number).prompts
        texts = None if prompts is None else Texts(prompts, text)
        if number < len(self.on.stages):
            rounds, kept = merge(self.on.stages[number].rounds, tokens, self.holding, texts)
        else:
            stages, kept, ahead = self.plan.unsettled.settle(tokens, self.holding, texts)
            self.plan.grow(stages, ahead)
            rounds = self.on.stages[number].rounds
        if len(self.masks) < len(self.on.stages):
            self._prepare()
        if self.config.proportional_attention:
            self._single = self._single and all(step.single for step in rounds)
        if self.trace is not None:
            assert kept.held is not None, "tokens of a pass hold original tokens"
            self.trace.merges.append((rounds, kept.held))
        return self.on.stages[number], rounds, kept

    def _prepare(self) -> None:
        """Prepare the layers' inputs for each stage that has been laid out since the last call."""
        for number in range(len(self.masks), len(self.on.stages)):
            stage, masking, following, rows = self.on.stages[number], self.masking, self.on.following, None
            mask = None
            if masking.given is not None:
                mask = picked_mask(masking.given, stage.sources, stage.real)
                self.masking = replace(masking, given=mask)
            elif masking.ready and stage.after.padded:
                mask = padded_causal_mask(stage.real)
            if self.config.positions == "renumber":
                following, rows = renumbered(self.past.following[number], stage, mask, self.compression.axes)
            padded = self.past.padded[number] or stage.after.padded
            if mask is None and padded and not masking.apart:
                mask = torch.cat([self.past.masks[number], stage.real], dim=1).long()
            self.masks.append(mask)
            self.segments.append(stage.segments if masking.apart or stage.numbers is not None else None)
            self.sizes.append(None)
            self.rows.append(rows)
            self._following.append(following)
        if self.plan.ahead is None:
            stages = self.plan.stages
            self.state = self.past.then(
                tuple(stage.real for stage in self.on.stages),
                tuple(self._following),
                tuple(stage.after.padded for stage in stages),
                self.plan.layout.real.shape[1],
                compressed=not self.plan.as_given,
            )
            self.compression.last, self.compression.watch = self.plan, self.watch

    def _hold(self, stage: int, text: Tokens, kept: Tokens) -> None:
        """Store the data of each place of a stage, and make the stage's position rows."""
        on = self.on.stages[stage]
        words, visual = text.held, kept.held
        assert words is not None, "tokens of a pass hold original tokens"
        assert visual is not None, "tokens of a pass hold original tokens"
        parts = [words, visual] if len(visual) else [words]
        width = max(part.shape[1] for part in parts)
        nothing = words.new_full((1, width), self.on.positions.shape[1] - 1)
        held = torch.cat([*(part.expand(-1, width) for part in parts), nothing])[on.rows]

        def placed(parts: list[torch.Tensor]) -> torch.Tensor:
            pad = parts[0].new_zeros(1, *parts[0].shape[1:])
            return torch.cat([*parts, pad])[on.rows].flatten(0, 1)

        known = (replace(part, features=None, held=None, spots=None, seen={}) for part in (text, kept))
        self._tokens = replace(Tokens.together(placed, *known), held=held.flatten(0, 1))
        if self.config.proportional_attention:
            self._count(stage)
        if self.rows[stage] is None:
            self.rows[stage] = held_rows(self.on.positions, held, self.config.rule.by_axis)

    def _count(self, stage: int) -> None:
        """Set how many tokens each place of a stage counts for in attention."""
        real, past, new = self.on.stages[stage].real, self.past, None
        if not self._single:
            sizes = self._tokens.sizes
            assert sizes is not None, "tokens are counted from the first stage on"
            new = sizes.view(real.shape).clamp_min(1)  # text and padding count for one
        self.sizes[stage] = joined_sizes(past.sizes[stage], past.masks[stage], new, real)
        if self.plan.ahead is None and isinstance(self.state, CacheState):
            self.state = replace(self.state, sizes=tuple(self.sizes))


def renumbered(
    first: torch.Tensor, stage: Stage, mask: torch.Tensor | None, axes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B] the position that follows a stage, and [axes, B, L] its rows: its real tokens are first, first + 1, ...

    A token's number is the number of tokens that it sees before itself, which a 4D mask determines if there is one.
    """
    numbers = stage.numbers
    if numbers is None:
        numbers = (stage.real.long().cumsum(1) if mask is None else seen_places(mask)) - 1
    rows = (first[:, None] + numbers).clamp_min(0)[None].expand(axes, -1, -1)
    return first + torch.where(stage.real, numbers, -1).amax(1) + 1, rows


def _arranged(
    stage: Stage, rounds: tuple[Round, ...], text: torch.Tensor, tokens: torch.Tensor, padding: float = 1.0
) -> torch.Tensor:
    """[B, L, C] text [T, C], and what a stage's rounds make of its tokens [R, C], each in its place; differentiable.

    Args:
        padding: the value at padding. It is 1 for embeddings: nothing attends to padding, but labels may make it
            predict a token, and the gradient of a norm of zeros is huge.
    """
    for step in rounds:
        tokens = step.apply(tokens)
    return torch.cat([text, tokens.to(text.dtype), text.new_full((1, text.shape[-1]), padding)])[stage.rows]
