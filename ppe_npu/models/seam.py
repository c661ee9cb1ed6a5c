"""Replacing methods of one module instance, and putting back what was there.

Classes stay as they are. Bound methods (and no closures) are installed, so that copy.deepcopy of a compressed model
gives an independent compressed model.

Every override, checked against transformers 5.2.0 (by `make test-matrix`), 5.22.2 and 5.24.0:

    compress(), of the model for conditional generation (vision_language.py)
        forward; by generation.py prepare_inputs_for_generation, _expand_inputs_for_generation,
        _get_candidate_generator (5.2: prompt lookup is refused), _valid_auto_compile_criteria, _prefill,
        _prepare_position_ids_for_generation, _supports_mm_encoder_outputs and init_continuous_batching
    compress(), of its .model: forward
    compress(), of its .model.language_model: forward, where layers merge on entry or take the tower's features
        (decoder.py); rotary_emb is another module (5.2: it gives a table for each axis)
    its first pass for the loss alone, of its lm_head: forward (loss.py)
    compress(), of a decoder layer, where FastV runs as published: forward (seeing_ahead.py)
    compress(), where a step works inside the tower, of .model.visual and its blocks (tower_blocks.py), or of InternVL's
        .model.vision_tower, its encoder and layers (tile_blocks.py): forward
    compress(), of its .model.visual, where a step drops cells of pictures, and in older transformers (5.2) alone:
        rot_pos_emb, fast_pos_embed_interpolate and get_window_index, while it runs (pixels.py)
    fuse(), of norms, MLPs and attentions: forward (fused.py)

compat.py has what differs between these versions (the KV cache's name among them), known.py what a
decoder may be made of.

Why not by transformers' own hooks (read in 5.2.0, 5.22.2 and 5.24.0):

    AttentionInterface: an entry belongs to the process and is chosen by config._attn_implementation, and neither the
        process nor a config is changed here. It is called after the rotary embedding, so that one would stay an
        override for its fused operator. The vision tower calls it once per window, unless its name holds "flash":
        then transformers takes it for flash attention in other places, too. The override of a decoder's attention is
        as long as an entry with its mask would be, and the tower's has no counterpart.
    AttentionMaskInterface: an implementation without an entry of its own gets no mask at all, not even for padding;
        with one it is given transformers' 4D mask, which is what the segments of a padded prompt are there to avoid.
    kernel layers (of norms, and in newer releases of the rotary embedding): they need the package `kernels`, which
        fetches what it runs from the hub, and are mapped by the names of classes, not by instances.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch

_SAVED = "_ppe_saved_methods"  # of a module: by name an _Override
_HOOKED = "_old_forward"  # where accelerate's hooks keep the forward that they call


@dataclass(frozen=True)
class _Override:
    """One method of one instance.

    Args:
        function: function(module, **kwargs) stands in for it.
        saved: the instance's own attribute of that name before, None where it had none.
        idle: whether it was taken back but had to stay, because somebody has wrapped it meanwhile.
    """

    function: Callable
    saved: Callable | None
    idle: bool = False


def override(module: torch.nn.Module, name: str, function: Callable, show: tuple[str, ...] = ()) -> None:
    """Make `function(module, **kwargs)` the method `name` of this instance.

    Callers see the signature that the class has, and may pass its arguments by place: they arrive by name. Where an
    idle override of that name stands under somebody's wrapper, it is put in force again there.

    Args:
        show: parameters that it shall show, whether the class has them or not.
    """
    overrides = vars(module).setdefault(_SAVED, {})
    if name in overrides:
        overrides[name] = _Override(function, overrides[name].saved)
        return
    slot = _slots(module, name)[-1]
    overrides[name] = _Override(function, vars(module).get(slot))
    vars(module)[slot] = MethodType(_with_signature(getattr(type(module), name), name, show), module)


def original(module: torch.nn.Module, name: str) -> Callable:
    """The method that was in force before override()."""
    saved = vars(module)[_SAVED][name].saved
    # No bound method: torch.compile takes one to be the attribute of that name, which is the override.
    return saved if saved is not None else functools.partial(getattr(type(module), name), module)


def is_overridden(module: torch.nn.Module, name: str) -> bool:
    """Whether an override of that name is in force on this instance."""
    override = vars(module).get(_SAVED, {}).get(name)
    return override is not None and not override.idle


def restore_methods(module: torch.nn.Module) -> None:
    """Take every override of this instance back. A wrapper that somebody has put around one (a mixed precision's, a
    hook's) stays where it is, and what it wraps does what was done before."""
    kept = {}
    for name, override in vars(module).pop(_SAVED, {}).items():
        slot = next((slot for slot in _slots(module, name) if _is_ours(vars(module).get(slot))), None)
        if slot is None and name in vars(module):
            kept[name] = replace(override, idle=True)
        elif override.saved is not None:
            vars(module)[slot or name] = override.saved
        elif slot == _HOOKED:
            vars(module)[slot] = MethodType(getattr(type(module), name), module)
        elif slot is not None:
            vars(module).pop(slot, None)
    if kept:
        vars(module)[_SAVED] = kept


def _slots(module: torch.nn.Module, name: str) -> list[str]:
    """The attributes that may hold a method: accelerate's hooks put a forward of theirs before the one that was there,
    and when they go they bring that one back."""
    return [name, _HOOKED] if name == "forward" and _HOOKED in vars(module) else [name]


def _is_ours(method: Any) -> bool:
    """Whether a method is an override itself: who wraps one copies its attributes to the wrapper."""
    function = getattr(method, "__func__", method)
    return getattr(function, "_ppe_itself", None) is function


def is_shallow_copy(module: torch.nn.Module) -> bool:
    """Whether this is a copy.copy of a module with overrides: they are the original's, and so are its submodules."""
    methods = [vars(module).get(name) for name in vars(module).get(_SAVED, ())]
    return any(isinstance(method, MethodType) and method.__self__ is not module for method in methods)


def own_submodules(module: torch.nn.Module, *names: str) -> None:
    """Give a shallow copy submodules of its own: shallow copies again, with the same parameters."""
    own = {name: copy.copy(child) if name in names else child for name, child in module._modules.items()}
    vars(module)["_modules"] = own


@functools.cache
def _with_signature(method: Callable, name: str, show: tuple[str, ...]) -> Callable:
    signature = inspect.signature(method)
    names = list(signature.parameters)[1:]

    def replacement(self, *args, **kwargs):
        override = self.__dict__.get(_SAVED, {}).get(name)
        if override is None:  # called by a shallow copy after its original was restored
            return method(self, *args, **kwargs)
        if override.idle:
            return original(self, name)(*args, **kwargs)
        return override.function(self, **dict(zip(names, args)), **kwargs)

    def alone(self, *args, **kwargs):
        return replacement(self, *args, **kwargs)

    shown = list(signature.parameters.values())
    rest = [parameter for parameter in shown if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    extra = [inspect.Parameter(own, inspect.Parameter.KEYWORD_ONLY, default=None) for own in show if own not in names]
    shown = [parameter for parameter in shown if parameter not in rest] + [*extra, *rest]
    outer: Any = replacement  # functions have these attributes; their type in typeshed has not
    inner: Any = alone
    for function in (outer, inner):
        functools.update_wrapper(function, method)
        function.__signature__ = signature.replace(parameters=shown)
        function._ppe_itself = function
    # accelerate's unwrap_model takes mixed precision off by following __wrapped__ to its end: there we are, too.
    outer.__wrapped__ = inner
    del inner.__wrapped__
    return outer
