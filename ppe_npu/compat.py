"""The incompatibilities between the supported versions: each is handled here, once, and nowhere else.

Accelerator.unwrap_model: transformers >= 5.2 passes `keep_torch_compile`, which accelerate 1.1.1 does not accept.
resize: until about 5.20 a processor takes its resampling as `interpolation`, and ignores `resample`.
mm_token_type_ids: without them transformers >= 5.3 silently runs Qwen2.5-VL with text positions only.
cache: the KV cache's name in calls and outputs since transformers 5.24; before, it is past_key_values.
create_causal_mask: until about 5.20 transformers sizes every mask by the first layer's cache.
cache_position: until about 5.10 transformers' layers need an argument that says where a static cache is written.
decoder_cache: until 5.4 a model with linear attention (Qwen3.5) has its own cache class, without `layers`.
run_linear: until 5.6 linear attention forgets its state when more than one token continues a cache.

tests/test_compat.py shows for each that the guard is still needed, and fails once it can be deleted.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ppe_npu.errors import InputError


def adapt_unwrap_model(accelerator: Any) -> Any:
    """Let this accelerator's unwrap_model take `keep_torch_compile`, as in accelerate >= 1.3; its class is unchanged.

    accelerate 1.1.1 always returns a compiled model compiled, so keep_torch_compile=False unwraps it here.

    Args:
        accelerator: an accelerate.Accelerator, changed in place if its unwrap_model lacks the argument.

    Returns:
        The accelerator.
    """
    original = accelerator.unwrap_model
    if "keep_torch_compile" in inspect.signature(original).parameters:
        return accelerator

    @functools.wraps(original)
    def unwrap_model(model, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True):
        unwrapped = original(model, keep_fp32_wrapper=keep_fp32_wrapper)
        return unwrapped if keep_torch_compile else getattr(unwrapped, "_orig_mod", unwrapped)

    # functools.wraps would show the old signature, and a second call would wrap again.
    unwrap_model.__signature__ = inspect.signature(unwrap_model, follow_wrapped=False)
    accelerator.unwrap_model = unwrap_model
    return accelerator


def ensure_mm_token_type_ids(inputs: dict[str, Any], image_token_id: int, video_token_id: int) -> dict[str, Any]:
    """Put mm_token_type_ids into model inputs that lack them.

    Args:
        inputs: model inputs with input_ids, int64 [B, S]; changed in place.
        image_token_id: the id of an image's placeholder token.
        video_token_id: the id of a video's placeholder token.

    Returns:
        inputs, with mm_token_type_ids, int64 [B, S]: 1 at image tokens, 2 at video tokens, 0 elsewhere. If they are
        there already, they are not changed.
    """
    if inputs.get("mm_token_type_ids") is None:
        input_ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (input_ids == image_token_id).long() + 2 * (input_ids == video_token_id).long()
    return inputs


def drop_unknown_types(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs without mm_token_type_ids where the model's generate() would refuse them (transformers < 5.3)."""
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        return inputs
    return {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}


def set_pixels(maker: Any, least: int, most: int) -> None:
    """Set the least and the most pixels to which an image processor resizes a picture. Older transformers uses
    a second copy of these two numbers."""
    maker.size = {"shortest_edge": least, "longest_edge": most}
    for name, pixels in (("min_pixels", least), ("max_pixels", most)):
        if getattr(maker, name, None) is not None:
            setattr(maker, name, pixels)


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a model, layer or attention, under either name; None without one."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache


def cache_argument(function: Callable, cache: Any) -> dict[str, Any]:
    """The KV cache as a keyword argument of a forward or an output class, under the name that this one uses."""
    return {_cache_name(function): cache}


def output_cache(output: Any) -> Any:
    """The KV cache that a model's forward or generate() has put into its output; None without one."""
    return getattr(output, _cache_name(type(output)), None)


@functools.cache
def _cache_name(function: Callable) -> str:
    return "cache" if "cache" in _parameters(function) else "past_key_values"


def decoder_cache(text: Any, cache: Any) -> Any:
    """The KV cache of a decoder, with `layers`: the given one, or a new one for None.

    Args:
        text: the text model. cache: transformers' Cache, an instance of the model's own cache class, or None.

    Raises:
        InputError: not the model's own cache class, in a transformers whose Cache holds no states.
    """
    from transformers import DynamicCache, __version__

    own = _own_cache(type(text))
    if own is None:
        return DynamicCache(config=text.config) if cache is None else cache
    cache = own(config=text.config) if cache is None else cache
    if not isinstance(cache, own):
        raise InputError(
            f"a {type(cache).__name__} holds no states of linear attention in transformers {__version__}: "
            "leave the cache out, or pip install 'transformers>=5.5'"
        )
    if not hasattr(cache, "layers"):
        kinds = {"full_attention": _AttentionLayer, "linear_attention": _StateLayer}
        cache.layers = [kinds[kind](cache, number) for number, kind in enumerate(text.config.layer_types)]
    return cache


@functools.cache
def _own_cache(text: type) -> type | None:
    """The cache class that is defined in the module of this text model; None where it is transformers' DynamicCache."""
    known = next((base for base in text.__mro__ if base.__module__.startswith("transformers.models.")), text)
    name = f"{known.__name__.removesuffix('TextModel')}DynamicCache"
    return getattr(sys.modules[known.__module__], name, None)


class _StateLayer:
    """A layer of linear attention in a model's own cache: a state, which has no length."""

    def __init__(self, cache: Any, number: int):
        self._cache, self._number = cache, number


class _AttentionLayer(_StateLayer):
    """A layer of full attention in that cache: keys and values [B, heads, tokens, D], None while it is empty."""

    keys = property(lambda self: self._cache.key_cache[self._number])
    values = property(lambda self: self._cache.value_cache[self._number])
    is_initialized = property(lambda self: self.keys is not None)

    def get_seq_length(self) -> int:
        return self._cache.get_seq_length(self._number)


def run_linear(layer: Any, hidden: Any, arguments: dict[str, Any], past: int) -> Any:
    """Output of a decoder layer of linear attention for hidden [B, L, C]. past: how many tokens its state has seen.

    Where transformers would forget the state, the layer is given one token after the other, with zeros for padding (so
    does the layer itself mask it).
    """
    import torch

    if not past or hidden.shape[1] == 1 or cache_of(arguments) is None or not _forgets_states():
        return layer(hidden, **arguments)
    mask = arguments["attention_mask"]
    hidden = hidden if mask is None else hidden * mask[..., None].to(hidden.dtype)
    steps = [layer(token, **{**arguments, "attention_mask": None}) for token in hidden.split(1, dim=1)]
    return torch.cat([step[0] if isinstance(step, tuple) else step for step in steps], dim=1)


@functools.cache
def _forgets_states() -> bool:
    from packaging.version import Version
    from transformers import __version__

    return Version(__version__) < Version("5.7")


def layer_causal_mask(config: Any, hidden: Any, mask: Any, cache: Any, layer: int, past: int) -> Any:
    """transformers' causal mask for the attention implementation in use, sized by the cache of one layer.

    Args:
        config: the text model's. hidden: [B, L, C], for shape, dtype and device.
        mask: [B, past + L], nonzero at real tokens; or a 4D mask, which is returned as it is; or None.
        cache: transformers' Cache or None. layer: the layer whose cache sizes the mask. past: how many tokens it holds.
    """
    from transformers.masking_utils import create_causal_mask

    wanted = _parameters(create_causal_mask)
    sized = None if cache is None else _OneLayer(cache, layer)
    known = {
        "config": config,
        "inputs_embeds": hidden,
        "input_embeds": hidden,
        "attention_mask": mask,
        **cache_argument(create_causal_mask, sized),
        "position_ids": None,
        **cache_position(create_causal_mask, past, hidden),
    }
    return create_causal_mask(**{name: value for name, value in known.items() if name in wanted})


class _OneLayer:
    """A cache that reports the sizes of one of its layers for all of them."""

    is_sliding = (False,)

    def __init__(self, cache: Any, layer: int):
        self._cache, self._layer = cache, layer
        self.is_compileable = cache.is_compileable

    def get_mask_sizes(self, query: Any, _layer: int = 0) -> Any:
        return self._cache.get_mask_sizes(query, self._layer)

    def get_query_offset(self, _layer: int = 0) -> Any:
        return self._cache.get_query_offset(self._layer)

    def get_seq_length(self, _layer: int = 0) -> Any:
        return self._cache.get_seq_length(self._layer)


def cache_position(function: Callable, past: int, hidden: Any) -> dict[str, Any]:
    """The argument cache_position, if the function (of older transformers) takes it: the indices that new tokens
    [B, L, C] get in a cache that holds `past` tokens."""
    import torch

    if "cache_position" not in _parameters(function):
        return {}
    return {"cache_position": torch.arange(past, past + hidden.shape[1], device=hidden.device)}


def resampling(resize: Callable, resample: Any) -> dict[str, Any]:
    """The argument for the resampling (a PIL constant) of a processor's resize(): `resample`, or until about 5.20
    torchvision's `interpolation`. resize() ignores unknown arguments, and would use its default resampling."""
    if "resample" in _parameters(resize):
        return {"resample": resample}
    from transformers.image_utils import pil_torch_interpolation_mapping

    return {"interpolation": pil_torch_interpolation_mapping[resample]}


@functools.cache
def _parameters(function: Callable) -> frozenset[str]:
    """The names of a function's parameters; cached, because every stage of every step needs them."""
    return frozenset(inspect.signature(function).parameters)
