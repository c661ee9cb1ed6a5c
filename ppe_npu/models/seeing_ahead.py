"""The decoder layer before FastV's cut, as the published code runs it, for `fastv` with released=true.

That code computes this layer's attention itself, to get the weights, and without a causal mask: each token of a prompt
attends to later ones, too. Its softmax rounds the weights to fp16, in later steps as well.

Modifications (on the given instance only): that layer's forward. It calls the layer's parts as the original does, but
for the attention module, whose projections it calls directly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from ppe_npu.compat import cache_of
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method
from ppe_npu.models.forward_pass import KEYWORD, NOTHING
from ppe_npu.models.fused import heads_of
from ppe_npu.models.seam import is_overridden, override, own_submodules, restore_methods

LAYERS = ("Qwen2VLDecoderLayer", "Qwen2_5_VLDecoderLayer")  # the published code's layer, and a similar one


def layers_of(methods: Iterable[Method]) -> set[int]:
    """The decoder layers that must run as published for these methods."""
    return {layer - 1 for method in methods if method.sees_ahead for layer in method.layers}


def check_ahead(layers, methods: Iterable[Method]) -> None:
    """Raise InputError where such a layer's class is not in LAYERS."""
    for method in methods:
        for name in {type(layers[number]).__name__ for number in layers_of([method])} - set(LAYERS):
            raise InputError(
                f"{method.name} with released=true runs the layer before it as published, which is supported for "
                f"{' and '.join(LAYERS)}, not for {name}: add causal=true, or leave released out"
            )


def install_ahead(text, methods: Iterable[Method]) -> None:
    """Let the layers of a text model that these methods need attend to later tokens."""
    for number in layers_of(methods):
        override(text.layers[number], "forward", _layer_forward)


def uninstall_ahead(text) -> None:
    """Undo install_ahead(), if it changed any layers."""
    for layer in text.layers:
        if is_overridden(layer, "forward"):
            restore_methods(layer)


def detach_ahead(text) -> None:
    """Give a shallow copy of a text model its own copies of such layers, around the same parameters."""
    names = [name for name, layer in text.layers.named_children() if is_overridden(layer, "forward")]
    if names:
        own_submodules(text, "layers")
        own_submodules(text.layers, *names)


def _layer_forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
    """hidden_states [B, L, C]; kwargs: the arguments of a layer in staged_forward()."""
    hidden_states = hidden_states + _heard(self.self_attn, self.input_layernorm(hidden_states), kwargs)
    return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def _heard(attention, rows: torch.Tensor, kwargs: dict) -> torch.Tensor:
    """[B, L, C] attention output of tokens [B, L, C], each of which attends to all real tokens."""
    cache = cache_of(kwargs)
    table = [part[0] if part.ndim == 4 else part for part in kwargs["position_embeddings"]]  # one table, three times
    query, key, value = heads_of(attention, rows, table, cache, kwargs.get("cache_position"))
    mask = _there(kwargs, len(rows))
    if mask is None and cache is not None and cache.layers[attention.layer_idx].is_compileable:
        key, value = (part[:, :, : query.shape[2]] for part in (key, value))  # the rest of a static cache is empty
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) / math.sqrt(attention.head_dim)
    if mask is not None:
        scores = scores.masked_fill(~mask[..., : key.shape[2]], -math.inf)
    weights = scores.softmax(-1, dtype=torch.float16).to(query.dtype)
    return attention.o_proj((weights @ value).transpose(1, 2).flatten(2))


def _there(kwargs: dict, samples: int) -> torch.Tensor | None:
    """[B, 1, 1 or L, T] bool, which tokens are real; None: all. With a 4D mask, those that a row itself sees and those
    seen by any row that sees several (padding sees only itself)."""
    mask, segments = kwargs.get("attention_mask"), kwargs.get(KEYWORD, NOTHING).segments
    if mask is None and segments is not None and segments.tokens is not None:
        return (segments.tokens < segments.borders[-1]).view(samples, 1, 1, -1)
    if mask is None or mask.ndim == 2:
        return None if mask is None else mask[:, None, None].bool()
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    seen = seen.any(1, keepdim=True)
    several = seen.sum(-1, keepdim=True) > 1
    there = seen | (seen & several).any(2, keepdim=True)
    return there | ~there.any(-1, keepdim=True)  # softmax of a row that sees nothing would be nan
