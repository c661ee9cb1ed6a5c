"""The engine: a prompt's plan on the host, then features, positions, masks and labels of what is kept.

It knows tensors and spans, and nothing of any model family; ppe_npu.models brings it what a family calls its parts.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ppe_npu.config import CompressionConfig
from ppe_npu.grouping import Grouping
from ppe_npu.methods import METHODS
from ppe_npu.plan import BucketOnDevice, PlanOnDevice, PromptPlan
from ppe_npu.positions import check_sections, prompt_positions
from ppe_npu.report import CompressionReport, Stopwatch
from ppe_npu.spans import VisionTokens, compressed_layout, find_spans


@dataclass
class CacheState:
    """What later steps need of a compressed prompt; travels with its KV cache.

    Args:
        mask: [B, L] bool, True at the cached places that hold a token.
        following: [B] int64, the position of the next token.
        seen: columns of input_ids (padding among them) that the cache stands for, before compression.
        padded: whether the mask may have a False; known on the host.
        prompt: cached places up to the last one that was compressed; only what was added since can be taken off.
    """

    mask: torch.Tensor
    following: torch.Tensor
    seen: int
    padded: bool
    prompt: int

    @classmethod
    def empty(cls, real: torch.Tensor) -> "CacheState":
        """Before the first token of a batch like `real` [B, L]."""
        batch = real.shape[0]
        return cls(real.new_zeros(batch, 0), torch.zeros(batch, dtype=torch.long, device=real.device), 0, False, 0)

    def then(self, new: "CacheState") -> "CacheState":
        """This prompt continued by a new one."""
        mask = torch.cat([self.mask, new.mask], dim=1)
        prompt = self.mask.shape[1] + new.prompt if new.prompt else self.prompt
        return CacheState(mask, new.following, self.seen + new.seen, self.padded or new.padded, prompt)

    def cropped(self, length: int) -> "CacheState":
        """After the cache was cut to `length` places, as assisted decoding does with rejected tokens.

        Raises:
            ValueError: a part of the compressed prompt was cut off, or the cache is longer than this state.
        """
        removed = self.mask.shape[1] - length
        if removed == 0:
            return self
        if removed < 0 or length < self.prompt:
            raise ValueError(
                f"past_key_values hold {length} places, the compressed prompt {self.prompt} and all that was decoded "
                f"{self.mask.shape[1]}: only decoded tokens can be cut off a compressed cache"
            )
        following = self.following - self.mask[:, length:].sum(1)
        return CacheState(self.mask[:, :length], following, self.seen - removed, self.padded, self.prompt)


@dataclass(frozen=True)
class CompressedPrompt:
    """What the language model is given.

    Args:
        embeds: [B, L, C].
        position_rows: [R, B, L] int64, R = 3 or 3K.
        attention_mask: [B, cached and new] int64; [B, 1, L, L] where a 4D one was given; None without padding.
        state: for the cache.
    """

    embeds: torch.Tensor
    position_rows: torch.Tensor
    attention_mask: torch.Tensor | None
    state: CacheState


@dataclass
class Compression:
    """One model's compression: its settings, what its family says of visual tokens, and the report of the last prompt.

    Raises:
        ValueError: settings that do not fit the model.
    """

    config: CompressionConfig
    vision: VisionTokens
    sections: tuple[int, ...]
    decoder_layers: int = 1
    report: CompressionReport | None = field(default=None, init=False)

    def __post_init__(self):
        check_sections(self.config.k, self.sections)

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
    ) -> PromptPlan:
        """Find the spans, number the prompt, and lay out what will be kept.

        Args:
            input_ids: [B, S]. attention_mask: [B, S], or [B, 1, S, S] (then no place is taken for padding), or None.
            image_grid_thw, video_grid_thw: [n, 3] patches. second_per_grid_ts: [n_videos].
            position_ids: [3, B, S] to use instead of the prompt's own numbering.
            start: [B] first position of each sample, of a prompt that continues a cache.
            left: where padding goes, see compressed_layout.

        Raises:
            ValueError: shapes, placeholders and grids that disagree.
        """
        ids = input_ids.cpu().numpy()
        layout = find_spans(
            ids,
            _padding_mask(attention_mask, ids.shape),
            _rows(image_grid_thw),
            _rows(video_grid_thw),
            _rows(second_per_grid_ts),
            self.vision,
        )
        if position_ids is None:
            positions, following = prompt_positions(layout, self.vision, None if start is None else start.tolist())
        else:
            if tuple(position_ids.shape) != (3, *ids.shape):
                raise ValueError(f"position_ids have shape {list(position_ids.shape)}, not {[3, *ids.shape]}")
            positions = position_ids.cpu().numpy()
            following = positions.max(axis=(0, 2)) + 1
        return PromptPlan(layout, compressed_layout(layout, self.config.budget, left), positions, following)

    # -- between the vision tower and the first decoder layer: no host sync -------------------------------------------

    def compress(
        self,
        plan: PromptPlan,
        text_embeds: torch.Tensor,
        features: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past: CacheState | None = None,
        ready_mask: bool = False,
    ) -> CompressedPrompt:
        """Merge the features by the plan and assemble the compressed prompt.

        Args:
            text_embeds: [T, C] embeddings of the text tokens that plan.compressed.text names.
            features: [V, C] features of all images, then all videos; None without any.
            attention_mask: as given to the model; only a 4D one is read.
            past: of the cache that this prompt continues; the plan was made with its `following` as start.
            ready_mask: make a padded batch's 4D mask here (bool, True = attend), for an attention that takes one.
        """
        watch, on = Stopwatch(text_embeds.device), plan.on(text_embeds.device)
        embeds, rows = self._kept(on, text_embeds, features)
        position_rows, following, real = rows[:, on.rows], on.following, on.real
        state = CacheState.empty(real) if past is None else past
        if attention_mask is not None and attention_mask.ndim == 4:
            mask = _picked_mask(attention_mask, on.sources, real)
        else:
            mask = _causal_mask(real) if ready_mask and plan.padded and past is None else None
        if self.config.positions == "renumber":
            # A token's number is that of the tokens it sees before itself: a ready mask knows which these are.
            numbers = (real.long().cumsum(1) if mask is None else _seen(mask)) - 1
            position_rows = (state.following[:, None] + numbers).clamp_min(0)[None].expand(3, -1, -1)
            following = state.following + torch.where(real, numbers, -1).amax(1) + 1
        state = state.then(CacheState(real, following, plan.layout.real.shape[1], plan.padded, real.shape[1]))
        if mask is None and state.padded:
            # Without padding it stays None: transformers would read a mask of ones back from the device.
            mask = state.mask.long()
        self.report = CompressionReport.of(plan.layout, self.config, self.decoder_layers, watch)
        return CompressedPrompt(embeds[on.rows], position_rows, mask, state)

    def _kept(
        self, on: PlanOnDevice, text_embeds: torch.Tensor, features: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [T + G + 1, C] and position rows [R, T + G + 1] of text, of kept visual tokens, and of padding."""
        keep = self.config.k if on.buckets else 1
        text_rows = on.text_positions.repeat_interleave(keep, dim=0)
        embeds, rows = [text_embeds], [text_rows]
        for bucket in on.buckets:
            merged, merged_rows = self._merge(bucket, features, on.visual_positions)
            embeds.append(merged.to(text_embeds.dtype))
            rows.append(merged_rows)
        embeds.append(text_embeds.new_zeros(1, text_embeds.shape[-1]))
        rows.append(text_rows.new_zeros(text_rows.shape[0], 1))
        return torch.cat(embeds), torch.cat(rows, dim=1)

    def _merge(
        self, bucket: BucketOnDevice, features: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One bucket's kept tokens [G, C] and their position rows [3K, G]. positions: [3, V] by feature."""
        index, kept = bucket.features, bucket.kept
        tokens = features.index_select(0, index.flatten()).view(*index.shape, -1)
        if self.config.is_dense:
            return tokens.flatten(0, 1)[kept], positions[:, index.flatten()[kept]]
        group = METHODS[self.config.method]
        grouping: Grouping = group(tokens, bucket.valid, bucket.budgets, bucket.max_groups, self.config.order)
        merged = grouping.apply(tokens).flatten(0, 1).index_select(0, kept)
        with torch.no_grad():
            if self.config.positions == "ppe":
                members = grouping.members(self.config.k, self.config.members, tokens.detach())
            else:
                members = grouping.representatives[:, :, None]
            chosen = index.gather(1, members.flatten(1)).view(-1, members.shape[-1]).index_select(0, kept)
            # [3, G, K] -> rows axis * K + j
            rows = positions[:, chosen].permute(0, 2, 1).flatten(0, 1)
        return merged, rows

    # -- later steps --------------------------------------------------------------------------------------------------

    @staticmethod
    def continue_text(state: CacheState, new: torch.Tensor, seen: int, padded: bool) -> tuple[torch.Tensor, CacheState]:
        """Positions [3, B, Q] of tokens that continue a cache one by one, and the state after them; no host sync.

        Args:
            new: [B, Q] bool, False where a new place is padding.
            seen: columns of input_ids that the new places stand for.
            padded: whether `new` may have a False.
        """
        positions = state.following[:, None] + new.long().cumsum(1) - 1
        after = state.then(CacheState(new, state.following + new.sum(1), seen, padded, 0))
        return positions.clamp_min(0)[None].expand(3, -1, -1), after


def _causal_mask(real: torch.Tensor) -> torch.Tensor:
    """[B, 1, L, L] bool: every place sees the real ones up to itself, and padding sees itself."""
    eye = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    lower = torch.ones_like(eye).tril()
    return ((lower & real[:, None, :]) | eye)[:, None]


def _seen(mask: torch.Tensor) -> torch.Tensor:
    """[B, L] how many places each place of a 4D mask [B, 1, L, L] may see."""
    return (mask if mask.dtype == torch.bool else mask == 0)[:, 0].sum(-1)


def _picked_mask(mask: torch.Tensor, sources: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The rows and columns of a 4D mask (bool, or to be added) that the kept tokens stand for; padding sees itself."""
    length = real.shape[1]
    rows = mask.gather(2, sources[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))
    picked = rows.gather(3, sources[:, None, None, :].expand(-1, mask.shape[1], length, -1))
    shut, open_ = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
    # A row that may see nothing has no softmax.
    alone = ~real[:, :, None] & torch.eye(length, dtype=torch.bool, device=real.device)
    return picked.masked_fill(~real[:, None, None, :], shut).masked_fill(alone[:, None], open_)


def _rows(values: torch.Tensor | list | None) -> list:
    return [] if values is None else values.tolist() if isinstance(values, torch.Tensor) else list(values)


def _padding_mask(mask: torch.Tensor | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None or mask.ndim == 4:
        if mask is not None and tuple(mask.shape[2:]) != (shape[1], shape[1]):
            raise ValueError(f"attention_mask has shape {list(mask.shape)}, not [batch, 1, {shape[1]}, {shape[1]}]")
        return None
    if tuple(mask.shape) != shape:
        raise ValueError(f"attention_mask has shape {list(mask.shape)}, not that of input_ids {list(shape)}")
    return mask.cpu().numpy()
