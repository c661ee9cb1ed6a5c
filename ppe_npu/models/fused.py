"""Norms, MLPs and attention of one model through ppe_npu.backends, which uses the device's fused operators.

Modifications (on the given instance only, to modules of the classes that fused_classes.py lists):
* RMS norms and gated SiLU MLPs call backends.rms_norm and backends.swiglu.
* The vision tower's attention calls backends.attention once with the borders of all windows, while transformers calls
  its attention once per window unless flash attention is installed.
* The decoder's attention calls backends.rotary and backends.attention, but only if transformers' "sdpa" is chosen,
  whose masks backends.attention takes; any other implementation stays in use. The real tokens of a padded prompt are
  passed as segments, like those of a packed batch, because fused kernels take no mask.

If a loss looks wrong, switch this off first: unfuse(model).
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch

from ppe_npu import backends
from ppe_npu.backends.dispatch import candidates
from ppe_npu.compat import cache_of
from ppe_npu.errors import InputError
from ppe_npu.models.forward_pass import KEYWORD, NOTHING
from ppe_npu.models.fused_classes import MLP, NORM, TEXT, VISION, fused_part
from ppe_npu.models.known import has_attention
from ppe_npu.models.seam import original, override, restore_methods
from ppe_npu.models.tower_blocks import on_host, vision_attention

logger = logging.getLogger(__name__)
_FUSED = "_ppe_fused"
_LIKE = ("Norm", "MLP", "Mlp", "Attention")  # ends of the names of classes that are named where they are left


def fuse(model: torch.nn.Module) -> torch.nn.Module:
    """Route this model's norms, MLPs and attention through ppe_npu.backends, in place; returns the model. Modules of
    classes that fused_classes.py does not list are left as they are, and a line of the log names them once.

    Raises:
        InputError: no module has a known class.
    """
    parts = {module: fused_part(module) for module in model.modules()}
    if not any(parts.values()):
        raise InputError(
            f"{type(model).__name__} has no norm, MLP or attention of a class that fuse() knows, such as "
            "LlamaAttention: leave fuse() out"
        )
    for module, part in parts.items():
        if part is not None and _FUSED not in vars(module):
            override(module, "forward", _FORWARDS[part])
            vars(module)[_FUSED] = True
    left = {type(module) for module, part in parts.items() if part is None}
    names = {kind.__name__ for kind in left if not kind.__module__.startswith("torch.")}
    _say_left(tuple(sorted(name for name in names if name.endswith(_LIKE))))
    return model


@functools.cache  # once
def _say_left(names: tuple[str, ...]) -> None:
    if names:
        logger.info("fuse() leaves as they are: %s", ", ".join(names))


def takes_segments(text: Any) -> bool:
    """Whether a text model's attention can keep samples apart by segments, without a mask."""
    fused = all(has_attention(layer) and vars(layer.self_attn).get(_FUSED) for layer in text.layers)
    return fused and text.config._attn_implementation == "sdpa"


def adds_to_keys(text: Any, mask: torch.Tensor | None, hidden: torch.Tensor) -> bool:
    """Whether layers are to be given a key_bias, and not a mask that includes it: attention by ppe_npu.backends takes
    it without a matrix of queries by keys. A single query's mask is small and spares copying all keys in every layer,
    but not every device's attention takes a mask of numbers.

    Args:
        mask: the one for the layers. hidden: [B, Q, C], their input.
    """
    alone = hidden.shape[1] == 1 and any(e.name == "sdpa" for e in candidates("attention", hidden.device.type))
    return not alone and (mask is None or mask.dtype == torch.bool) and takes_segments(text)  # which asks every layer


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


def _is_causal(attention, kwargs: dict) -> bool:
    """Whether a token attends only to earlier ones where there is no mask; models that embed texts turn it off."""
    asked = kwargs.get("is_causal")
    return getattr(attention, "is_causal", True) if asked is None else asked


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
        causal = attention_mask is None and query.shape[2] > 1 and _is_causal(self, kwargs)
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


_FORWARDS: dict[str, Any] = {NORM: _rms_norm, MLP: _swiglu, VISION: _vision_attention, TEXT: _text_attention}
