"""The traps between the versions that this package pins: each is handled here, once, and nowhere else.

Accelerator.unwrap_model: transformers >= 5.2 passes `keep_torch_compile`, which accelerate 1.1.1 does not know.
resize: until about 5.20 a processor takes its resampling as `interpolation`, and ignores `resample`.
mm_token_type_ids: without them transformers >= 5.3 silently runs Qwen2.5-VL with text positions only.
cache: the KV cache's name in calls and outputs since transformers 5.24; before, it is past_key_values.
create_causal_mask: until about 5.20 transformers sizes a mask by its first layer's cache, whatever layer it is for.
cache_position: until about 5.10 transformers' layers want to be told where a static cache is written.
decoder_cache: until 5.4 a model with linear attention (Qwen3.5) has a cache of a class of its own, without `layers`.
run_linear: until 5.6 linear attention begins anew where more than one token goes on from a cache.

tests/test_compat.py shows for each that the break is still there without the guard, and fails when it can be deleted.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ppe_npu.errors import InputError


def adapt_unwrap_model(accelerator: Any) -> Any:
    """Let this one accelerator's unwrap_model take `keep_torch_compile`, as accelerate >= 1.3 does; its class stays.

    accelerate 1.1.1 always gives a compiled model back compiled, so keep_torch_compile=False takes the shell off here.

    Args:
        accelerator: an accelerate.Accelerator, changed in place when its unwrap_model lacks the argument.

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
        inputs, with mm_token_type_ids, int64 [B, S]: 1 at image tokens, 2 at video tokens, 0 elsewhere. Ids that
        are already there stay.
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
    """How many pixels an image processor makes of a picture, at least and at most; older transformers keeps the two
    numbers a second time, and goes by those."""
    maker.size = {"shortest_edge": least, "longest_edge": most}
    for name, pixels in (("min_pixels", least), ("max_pixels", most)):
        if getattr(maker, name, None) is not None:
            setattr(maker, name, pixels)


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a model, a layer or an attention, under either name; None without one."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache


def cache_argument(function: Callable, cache: Any) -> dict[str, Any]:
    """That cache as an argument of a forward, or of an output's class, under the name that it has there."""
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
        text: the text model. cache: transformers' Cache, one of the class that only this model has, or None.

    Raises:
        InputError: another cache than the model's own, in a transformers whose Cache holds no states.
    """
    from transformers import DynamicCache, __version__

    own = _own_cache(type(text))
    if own is None:
        return DynamicCache(config=text.config) if cache is None else cache
    cache = own(config=text.config) if cache is None else cache
    if not isinstance(cache, own):
        raise InputError(
            f"a {type(cache).__name__} holds no states of linear attention in transformers {__version__}: "
            "give no cache, or pip install 'transformers>=5.5'"
        )
    if not hasattr(cache, "layers"):
        kinds = {"full_attention": _AttentionLayer, "linear_attention": _StateLayer}
        cache.layers = [kinds[kind](cache, number) for number, kind in enumerate(text.config.layer_types)]
    return cache


@functools.cache
def _own_cache(text: type) -> type | None:
    """The cache's class that is defined beside this text model's; None where it is transformers' DynamicCache."""
    known = next((base for base in text.__mro__ if base.__module__.startswith("transformers.models.")), text)
    name = f"{known.__name__.removesuffix('TextModel')}DynamicCache"
    return getattr(sys.modules[known.__module__], name, None)


class _StateLayer:
    """What such a cache holds of a layer of linear attention: a state, which has no length."""

    def __init__(self, cache: Any, number: int):
        self._cache, self._number = cache, number


class _AttentionLayer(_StateLayer):
    """What it holds of a layer of full attention: keys and values [B, heads, tokens, D]; None before there are any."""

    keys = property(lambda self: self._cache.key_cache[self._number])
    values = property(lambda self: self._cache.value_cache[self._number])
    is_initialized = property(lambda self: self.keys is not None)

    def get_seq_length(self) -> int:
        return self._cache.get_seq_length(self._number)


def run_linear(layer: Any, hidden: Any, arguments: dict[str, Any], past: int) -> Any:
    """What a decoder layer of linear attention makes of hidden [B, L, C]. past: how many tokens its state has seen.

    A transformers that would forget the state is given one token after the other, with zeros for padding, as the layer
    itself would mask it.
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
        mask: [B, past and L], nonzero at real places; a 4D one, which is given back; or None.
        cache: transformers' Cache or None. layer: the one whose cache counts. past: places that it holds.
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
    """A cache as it would be if all its layers were as one of them."""

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
    """The argument of that name, for a function of older transformers that takes it: the places that the new tokens
    [B, L, C] get in a cache that holds `past` of them."""
    import torch

    if "cache_position" not in _parameters(function):
        return {}
    return {"cache_position": torch.arange(past, past + hidden.shape[1], device=hidden.device)}


def resampling(resize: Callable, resample: Any) -> dict[str, Any]:
    """The argument by which a processor's resize() takes its resampling (a PIL one): `resample`, until about 5.20
    `interpolation`, which is torchvision's. What resize() does not know it ignores, and resizes otherwise."""
    if "resample" in _parameters(resize):
        return {"resample": resample}
    from transformers.image_utils import pil_torch_interpolation_mapping

    return {"interpolation": pil_torch_interpolation_mapping[resample]}


@functools.cache
def _parameters(function: Callable) -> frozenset[str]:
    """Names that a function takes; asked in every stage of every step."""
    return frozenset(inspect.signature(function).parameters)
