"""The KV cache of a pass: whether it has one, and the state of a compressed prompt that is stored on it and kept in
step with its samples.

transformers' caches do not handle that state. So the methods that reorder, select, repeat or drop samples are wrapped
on each cache instance that carries a state.
"""

import functools
import itertools
from dataclasses import replace
from typing import Any

import torch

from ppe_npu.backends.device import asks_freely
from ppe_npu.compat import cache_of
from ppe_npu.engine.cache import CacheState, FixedState
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.run import Run
from ppe_npu.errors import InputError
from ppe_npu.models.forward_pass import KEYWORD, NOTHING

STATE, BUFFERS = "ppe_state", "ppe_buffers"  # attributes of a cache


def keep_state(cache: Any, state: CacheState | FixedState) -> None:
    """Store this state on the cache; a state of fixed length is written into the tensors that are there already."""
    if isinstance(state, FixedState):
        held = getattr(cache, STATE, None)
        if isinstance(held, FixedState) and held.hold(state):
            return
        state = state.settled()
    room = _room(cache) if cache.is_compileable else None
    setattr(cache, STATE, state if room is None else _fixed(cache, state, room))
    for method in (_reorder_cache, _batch_select_indices, _batch_repeat_interleave, _reset):
        name = method.__name__[1:]
        if name not in vars(cache) and hasattr(type(cache), name):
            vars(cache)[name] = functools.partial(method, cache)  # a partial, because pickle saves it, like the state


def _room(cache: Any) -> int | None:
    """How many tokens a static cache can hold; None unless it is the same in all layers and counted on the device."""
    layers = cache.layers
    counts = [getattr(layer, "cumulative_length", None) for layer in layers]
    if not layers or not all(isinstance(count, torch.Tensor) for count in counts):
        return None  # older transformers, or some layers have linear attention
    rooms = {layer.max_cache_len for layer in layers if not layer.is_sliding}
    return rooms.pop() if len(rooms) == 1 and not any(layer.is_sliding for layer in layers) else None


@torch.compiler.disable  # runs after a prompt, which the host lays out
def _fixed(cache: Any, state: CacheState, room: int) -> FixedState:
    made, kept = FixedState.of(state, room), getattr(cache, BUFFERS, None)
    if kept is not None and kept.hold(made):
        return kept
    for tensor in made.tensors:
        torch._dynamo.mark_static_address(tensor)  # as transformers marks the cache's own, also written in place
    setattr(cache, BUFFERS, made)
    return made


def is_scored(model, kwargs: dict) -> bool:
    """Whether the output of this pass is to be in the prompt's own columns (alignment.py).

    Args:
        model: the one for conditional generation, or the ...Model inside it. kwargs: those of its forward.
    """
    given = kwargs.get(KEYWORD, NOTHING)
    if given.scored is not None:
        return given.scored
    return not (given.packed or given.left or given.skip_logits) and keeps_no_cache(model, kwargs)


def keeps_no_cache(model, kwargs: dict) -> bool:
    """Whether a pass has no KV cache and use_cache (the argument's, or else the config's) is off. As is_scored()."""
    if cache_of(kwargs) is not None:
        return False
    if kwargs.get("use_cache") is not None:
        return not kwargs["use_cache"]
    return not all(getattr(config, "use_cache", True) for config in (model.config, model.config.get_text_config()))


def state_of(compression: Compression, kwargs: dict) -> CacheState | FixedState | None:
    """The state of the compressed prompt in the KV cache of a forward's arguments; None without a cache or if empty.

    Raises:
        InputError: a cache that was filled under another compression, or, where tokens are merged, without one.
    """
    cache, ids = cache_of(kwargs), kwargs.get("input_ids")
    if cache is None:
        return None
    state: CacheState | FixedState | None = getattr(cache, STATE, None)
    fixed = cache.is_compileable
    other = state is not None and state.layers != compression.layers
    if fixed and state is not None and not other and ids is not None and ids.shape[1] == 1:
        return state  # the length of a static cache is on the device: reading it waits
    state = None if state is None else state.settled()
    length = int(cache.get_seq_length())
    if length == 0:
        return None
    if state is None:
        if not compression.config.keeps_all or compression.linear:
            raise InputError("the KV cache was filled by a model without compression: start from an empty cache")
        return _of_others(compression, kwargs, length)
    if other:
        raise InputError("the KV cache was filled with another compression: start from an empty cache")
    return state if fixed else _of_length(state, cache, length)


def _of_others(compression: Compression, kwargs: dict, length: int) -> CacheState:
    """The state for a cache that other code has filled, where nothing is merged. As in transformers, positions
    continue as if the cache held the model's last prompt."""
    tokens = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
    mask, last = kwargs.get("attention_mask"), compression.last
    real = torch.ones(len(tokens), length, dtype=torch.bool, device=tokens.device)
    if mask is not None and mask.ndim == 2 and mask.shape[1] >= length:
        real = mask[:, :length] != 0
    if last is None or last.layout.real.shape[1] > length or len(tokens) % last.samples:
        return CacheState.of_others(real, 0)
    deltas = last.deltas[:, 0].to(tokens.device)
    return CacheState.of_others(real, deltas.repeat_interleave(len(tokens) // last.samples))


def _of_length(state: CacheState, cache: Any, length: int) -> CacheState:
    """The state, cropped as the cache may have been since. length: what the cache reports, that is the length of its
    first layer that has one (linear attention keeps a state without a length)."""
    layers, stage = state.layers, 0
    if layers:
        kept = next(number for number, layer in enumerate(cache.layers) if hasattr(layer, "get_seq_length"))
        stage = sum(first <= kept for first in layers)
    cut = state.cropped(stage, length)
    if cut is state:
        return state
    lengths = cut.lengths
    for stage, (first, end) in enumerate(itertools.pairwise((*layers, len(cache.layers))), start=1):
        # cache.crop() crops all layers to the length of the first, but later stages hold fewer tokens.
        for layer in cache.layers[first:end]:
            if hasattr(layer, "get_seq_length") and layer.get_seq_length() > lengths[stage]:
                layer.crop(lengths[stage])
    return cut


def continued(compression: Compression, kwargs: dict, state: CacheState | FixedState) -> tuple[dict, Run]:
    """The decoder's inputs and the pass through it, for text that continues a compressed prompt. Nothing is compressed,
    and the host does not wait for the device.

    Raises:
        InputError: a mask of the wrong kind or length.
    """
    name = "input_ids" if kwargs.get("input_ids") is not None else "inputs_embeds"
    tokens, mask = kwargs[name], kwargs.get("attention_mask")
    count = tokens.shape[1]
    takes_ready = compression.config.keeps_all and not compression.linear
    ready = mask if takes_ready and mask is not None and mask.ndim == 4 else None
    mask = None if ready is not None else mask
    if mask is not None and (mask.ndim != 2 or mask.shape[1] < count):
        raise InputError(
            f"attention_mask has shape {list(mask.shape)}: for tokens that continue a compressed cache give [batch, "
            "tokens so far]"
        )
    if isinstance(state, FixedState) and (ready is not None or state.masks.shape[1] != len(tokens)):
        state = state.settled()
    if not isinstance(state, FixedState):
        state = state.repeated(len(tokens))
    new = (
        torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask[:, -count:] != 0
    )
    positions = kwargs.get("position_ids")
    run = compression.continue_text(state, new, count, _may_pad(mask, new, kwargs), positions)
    return {name: tokens}, run if ready is None else replace(run, masks=[ready] * len(run.masks))


def _may_pad(mask: torch.Tensor | None, new: torch.Tensor, kwargs: dict) -> bool:
    """Whether there may be padding among the new tokens. The host checks only where it need not wait for the device,
    and where the cache does not need a mask of the same shape in every step."""
    if mask is None or not asks_freely(new.device):
        return mask is not None
    return getattr(cache_of(kwargs), "is_compileable", False) or not bool(new.all())


def _reorder_cache(self, beam_idx: torch.Tensor) -> None:
    type(self).reorder_cache(self, beam_idx)
    _pick(self, beam_idx)


def _batch_select_indices(self, indices: torch.Tensor) -> None:
    type(self).batch_select_indices(self, indices)
    _pick(self, indices)


def _batch_repeat_interleave(self, repeats: int) -> None:
    type(self).batch_repeat_interleave(self, repeats)
    state = getattr(self, STATE, None)
    if state is not None:
        settled = state.settled()
        keep_state(self, settled.repeated(len(settled.masks[0]) * repeats))


def _reset(self) -> None:
    type(self).reset(self)
    setattr(self, STATE, None)


def _pick(cache: Any, samples: torch.Tensor) -> None:
    state = getattr(cache, STATE, None)
    if state is not None:
        keep_state(cache, state.picked(samples))
