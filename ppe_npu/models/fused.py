"""Norms, MLPs and attention of one model through ppe_npu.backends, which uses the device's fused operators.

Modifications (on the given instance only; modules are recognized by their parts, so that it works for any Qwen-VL):
* RMS norms and gated SiLU MLPs call backends.rms_norm and backends.swiglu.
* The vision tower's attention calls backends.attention once with the borders of all windows, while transformers calls
  its attention once per window unless flash attention is installed.
* The decoder's attention calls backends.rotary and backends.attention, but only if transformers' "sdpa" is chosen,
  whose masks backends.attention takes; any other implementation stays in use. The real tokens of a padded prompt are
  passed as segments, like those of a packed batch, because fused kernels take no mask.

If a loss looks wrong, switch this off first: unfuse(model).
"""

from collections.abc import Sequence
from typing import Any

import torch

from ppe_npu import backends
from ppe_npu.backends.dispatch import candidates
from ppe_npu.compat import cache_of
from ppe_npu.errors import InputError
from ppe_npu.models.forward_pass import KEYWORD, NOTHING
from ppe_npu.models.known import TURNED_OTHERWISE, has_attention, is_gated
from ppe_npu.models.seam import original, override, restore_methods
from ppe_npu.models.tower_blocks import on_host, vision_attention

_FUSED = "_ppe_fused"


def fuse(model: torch.nn.Module) -> torch.nn.Module:
    """Route this model's norms, MLPs and vision attention through ppe_npu.backends, in place; returns the model."""
    for module in model.modules():
        forward = _forward_for(module)
        if forward is not None and _FUSED not in vars(module):
            override(module, "forward", forward)
            vars(module)[_FUSED] = True
    return model


def takes_segments(text: Any) -> bool:
    """Whether a text model's attention can keep samples apart by segments, without a mask."""
    fused = all(has_attention(layer) and vars(layer.self_attn).get(_FUSED) for layer in text.layers)
    return fused and text.config._attn_implementation == "sdpa"


def adds_to_keys(text: Any, mask: torch.Tensor | None, hidden: torch.Tensor) -> bool:
    """Whether layers are to be given a key_bias, and not a mask that includes it: attention by ppe_npu.backends takes
    it without a matrix of queries by keys. A single query's mask is small and spares copying all keys in every layer,
    but not every device's attention takes a mask of numbers.

    Args:
        mask: of the layers. hidden: [B, Q, C], their input.
    """
    alone = hidden.shape[1] == 1 and any(e.name == "sdpa" for e in candidates("attention", hidden.device.type))
    return takes_segments(text) and not alone and (mask is None or mask.dtype == torch.bool)


def check_key_bias(text: Any, packed: bool = False) -> None:
    """Raise InputError unless a text model's attention can add a bias to the scores of each key.

    Args:
        packed: whether the samples of a batch are packed into one row, which needs attention by ppe_npu.backends.
    """
    subject, name = "proportional_attention adds log(size) to the scores of keys", text.config._attn_implementation
    if name not in ("sdpa", "eager"):
        raise InputError(f"{subject}, but {name} takes no mask: load the model with attn_implementation='sdpa'")
    if packed and not takes_segments(text):
        raise InputError(
            f"{subject}, which attention outside ppe_npu.backends cannot do in a packed batch: leave packed out"
        )


def unfuse(model: torch.nn.Module) -> torch.nn.Module:
    """Undo fuse()."""
    for module in model.modules():
        if vars(module).pop(_FUSED, False):
            restore_methods(module)
    return model


def _forward_for(module: torch.nn.Module):
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return _rms_norm
    children = {name for name, _ in module.named_children()}  # exactly these: GLM's merger has them, too, and more
    if children == {"gate_proj", "up_proj", "down_proj", "act_fn"} and "silu" in type(module.act_fn).__name__.lower():
        return _swiglu
    if type(module).__name__.endswith("VisionAttention") and hasattr(module, "qkv"):
        return _vision_attention
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "layer_idx")
    plain = getattr(module, "sliding_window", None) is None and type(module).__name__ not in TURNED_OTHERWISE
    if plain and all(hasattr(module, part) for part in parts):
        return None if is_gated(module) else _text_attention
    return None


def _rms_norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
    return backends.rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _swiglu(self, **inputs: torch.Tensor) -> torch.Tensor:
    (x,) = inputs.values()
    return self.down_proj(backends.swiglu(self.gate_proj(x), self.up_proj(x)))


def _vision_attention(
    self, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: tuple, **_
) -> torch.Tensor:
    """hidden_states [T, C]; cu_seqlens [windows + 1]; position_embeddings cos, sin [T, D]."""
    return vision_attention(self, hidden_states, position_embeddings, on_host(cu_seqlens))[0]


def heads_of(
    attention, rows: torch.Tensor, table: Sequence[torch.Tensor], cache: Any, place: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B, H, S, D], and keys and values [B, K, T, D] including those in the cache.

    Args:
        rows: [B, S, C]. table: cos, sin [B, S, D]. place: cache_position, for older caches.
    """
    heads = (*rows.shape[:2], -1, attention.head_dim)
    query, key, value = (part(rows).view(heads) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    cos, sin = (part.to(query.dtype) for part in table)
    query, key = backends.rotary(query, key, cos, sin)
    if cache is not None:
        key, value = cache.update(key, value, attention.layer_idx, {"cos": cos, "sin": sin, "cache_position": place})
    return query, key, value


def _text_attention(
    self,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """hidden_states [B, S, C]; position_embeddings cos, sin [B, S, D]; attention_mask bool [B, 1, S, T] or None."""
    this = kwargs.get(KEYWORD, NOTHING)
    segments, bias = this.segments, this.key_bias
    # Older transformers has one table per axis, from which each layer picks its sections. Ours is one table expanded to
    # three (with stride 0, until it is copied), and only ours comes with segments or a bias.
    ours = segments is not None or bias is not None or position_embeddings[0].stride(0) == 0
    table = [part[0] if part.ndim == 4 and ours else part for part in position_embeddings]
    if self.config._attn_implementation != "sdpa" or table[0].ndim != 3:
        inputs = {"attention_mask": attention_mask, **kwargs}
        return original(self, "forward")(hidden_states, position_embeddings=position_embeddings, **inputs)
    cache = cache_of(kwargs)
    query, key, value = heads_of(self, hidden_states, table, cache, kwargs.get("cache_position"))
    bias = None if bias is None else bias.to(key.device)
    options = {"scale": self.scaling, "dropout": self.attention_dropout if self.training else 0.0}
    if segments is None:
        causal = attention_mask is None and query.shape[2] > 1
        if causal and cache is not None and cache.layers[self.layer_idx].is_compileable:
            # A static cache returns its whole length, but a first pass has filled only as many places as queries.
            key, value = (part[:, :, : query.shape[2]] for part in (key, value))
        out = backends.attention(query, key, value, mask=attention_mask, key_bias=bias, causal=causal, **options)
    else:
        row = (segments.row(part) for part in (query, key, value))
        bias = None if bias is None else segments.row(bias[:, None, :, None])[:, 0, :, 0]
        options |= {"cu_seqlens": list(segments.borders), "causal": True, "key_bias": bias}
        out = segments.batch(backends.attention(*row, **options), len(query))
    return self.o_proj(out.transpose(1, 2).flatten(2)), None
