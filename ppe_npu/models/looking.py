"""What methods look at in a decoder layer: its queries and keys, and one row of its attention.

They are computed separately, from the layer's input and by its own norm and projections. So the attention that the
layer itself runs (fused, in segments, on a static cache) stays in use, and need not return anything. The row of
attention takes memory for one query's scores: L for each head and sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ppe_npu.engine.positions import HALVES, NEIGHBOURS
from ppe_npu.engine.run import Run
from ppe_npu.engine.shown import Prompts
from ppe_npu.errors import InputError
from ppe_npu.models.known import is_gated


@dataclass(frozen=True)
class Looking:
    """A decoder layer and its upcoming input.

    Args:
        layer: has input_layernorm and self_attn (with q_proj, k_proj and perhaps norms of heads).
        hidden: [B, L, C].
        table: cos, sin [B, L, D], or with one more axis in front, along which all entries are the same.
        run: the pass. stage: the stage whose tokens these are.
        past: the layer's part of a KV cache with earlier tokens, or None.
        pairs: which channels of a head the table rotates together, see engine.rotary.rotary_table.
    """

    layer: Any
    hidden: torch.Tensor
    table: tuple[torch.Tensor, torch.Tensor]
    run: Run
    stage: int
    past: Any
    pairs: str = HALVES

    def __call__(self, needs: frozenset[str], prompts: Prompts | None) -> dict[str, torch.Tensor]:
        """{field: values}, for the fields of View that these needs stand for: [B * L, ...] at every place of the batch;
        for fields about text, [S, W, ...] at each sample's text.

        Args:
            needs: names from ppe_npu.engine.shown.LAYER_NEEDS. prompts: needed for "layer_row" and "layer_text".
        """
        with torch.no_grad():  # as a decorator it would break torch.compile's graph
            return self._seen(needs, prompts)

    def _seen(self, needs: frozenset[str], prompts: Prompts | None) -> dict[str, torch.Tensor]:
        unshard = getattr(self.layer, "unshard", None)  # FSDP's, which gathers weights only when a layer is called
        if unshard is not None:
            unshard()
        normed = self.layer.input_layernorm(self.hidden.detach()).flatten(0, 1)
        plain = "layer_plain" in needs
        seen: dict[str, torch.Tensor] = {}
        if needs & {"layer_queries", "layer_plain"}:
            seen |= self._parts("layer", "queries", normed, plain, "layer_queries" in needs)
        if needs & {"layer_keys", "layer_plain", "layer_row"}:
            seen |= self._parts("layer", "keys", normed, plain, bool(needs & {"layer_keys", "layer_row"}))
        if prompts is not None and "layer_text" in needs:
            places, shape = prompts.text_places.flatten(), tuple(prompts.text_places.shape)
            for name in ("queries", "keys"):
                parts = self._parts("text", name, normed.index_select(0, places), plain, True, places)
                seen |= {field: part.unflatten(0, shape) for field, part in parts.items()}
        if prompts is not None and "layer_row" in needs:
            seen["layer_row"] = self._row(normed, seen["layer_keys"], prompts)
        return seen

    def _parts(
        self,
        of: str,
        name: str,
        normed: torch.Tensor,
        plain: bool,
        rotated: bool,
        places: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Queries or keys [P, H, D] before and after rotary embedding, at these places of the batch (None: all)."""
        heads = self._heads(normed, name)
        parts = {f"{of}_plain_{name}": heads} if plain else {}
        return parts | ({f"{of}_{name}": self._rotated(heads, places)} if rotated else {})

    def _heads(self, normed: torch.Tensor, name: str) -> torch.Tensor:
        """Queries or keys [P, H, D] before rotary embedding, after the norm of heads (if any). normed: [P, C]."""
        attention, short = self.layer.self_attn, name[0]
        heads = getattr(attention, f"{short}_proj")(normed).unflatten(-1, (-1, attention.head_dim))
        heads = heads[:, ::2] if short == "q" and is_gated(attention) else heads  # a gate follows each query
        norm = getattr(attention, f"{short}_norm", None)
        heads = heads if norm is None else norm(heads)
        return heads.to(self.hidden.device)  # a device map may place the layer elsewhere

    def _rotated(self, heads: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """Heads [P, H, D] after rotary embedding, with transformers' rounding."""
        table = (part[0] if part.dim() == 4 else part for part in self.table)
        cos, sin = (part.flatten(0, 1) for part in table)
        if places is not None:
            cos, sin = cos.index_select(0, places), sin.index_select(0, places)
        cos, sin = (part[:, None].to(heads.device, heads.dtype) for part in (cos, sin))
        heads, still = heads.split([cos.shape[-1], heads.shape[-1] - cos.shape[-1]], dim=-1)
        if self.pairs == NEIGHBOURS:
            crossed = torch.stack((-heads[..., 1::2], heads[..., 0::2]), dim=-1).flatten(-2)
        else:
            first, second = heads.chunk(2, dim=-1)
            crossed = torch.cat((-second, first), dim=-1)
        return torch.cat((heads * cos + crossed * sin, still), dim=-1)

    def _row(self, normed: torch.Tensor, keys: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """[B * L] attention weights of each prompt's last token, the mean over heads; fp32 or wider.

        Args:
            normed: [B * L, C]. keys: [B * L, H, D].
        """
        last = prompts.last
        query = self._rotated(self._heads(normed.index_select(0, last), "queries"), last)
        keys, mask = prompts.apart(keys), prompts.seen
        given = self.run.masks[self.stage]
        if given is not None and given.dim() == 4:  # only without packing and without a cache
            place = last % given.shape[2]
            given = given.gather(2, place[:, None, None, None].expand(-1, given.shape[1], 1, given.shape[3]))[:, :, 0]
            mask = given.to(mask.device)
        earlier = self.run.past_length(self.stage)
        if earlier:
            keys = torch.cat([_cached(self.past, earlier).to(keys.device, keys.dtype), keys], dim=1)
            mask = torch.cat([self.run.state.masks[self.stage][:, :earlier], mask], dim=1)
        scale = getattr(self.layer.self_attn, "scaling", query.shape[-1] ** -0.5)
        row = attention_row(query, keys, mask, scale, self.run.sizes[self.stage])
        return prompts.together(row[:, earlier:])


def attention_row(
    query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scale: float, sizes: torch.Tensor | None = None
) -> torch.Tensor:
    """[S, L] one row of attention per sample, the mean over heads; fp32 or wider.

    Args:
        query: [S, H, D]. keys: [S, L, K, D]; each of the K heads serves H / K consecutive query heads.
        mask: [S, L] or [S, heads or 1, L], bool (True = attend) or floating point (added).
        sizes: [S, L] how many tokens each key counts for; None: one.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(dtype).unflatten(1, (keys.shape[2], -1))
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.matmul(grouped, keys.to(dtype).permute(0, 2, 3, 1)).flatten(1, 2) * scale
    if sizes is not None:
        scores = scores + sizes.to(dtype).log()[:, None]
    mask = mask if mask.dim() == 3 else mask[:, None]
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(dtype).min)
    else:
        scores = scores + mask.to(dtype)
    return scores.softmax(-1).mean(1)


def _cached(past: Any, length: int) -> torch.Tensor:
    """[B, length, K, D] the first keys in a layer of a cache.

    Raises:
        InputError: a cache that does not store plain keys.
    """
    keys = getattr(past, "keys", None)
    if keys is None or keys.dim() != 4 or keys.shape[2] < length:
        raise InputError(
            f"{type(past).__name__} holds no plain keys for a method to look at: use a DynamicCache or a StaticCache"
        )
    return keys[:, :, :length].transpose(1, 2)
