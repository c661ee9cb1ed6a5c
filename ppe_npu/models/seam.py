"""Replacing methods of one module instance, and restoring the previous ones.

compress() and fuse() change instances, not classes. Bound methods, not closures, are installed, so that copy.deepcopy
of a compressed model gives an independent compressed model.

Every override, checked against transformers 5.2.0 (by `make test-matrix`), 5.22.2 and 5.24.0. tests/models/test_seam.py
compares this list with what is found on a tiny model of every family:

    `model`, the one for conditional generation (vision_language.py, one_dimension.py): `forward`; of generate()
        (generation.py): `prepare_inputs_for_generation`, `_expand_inputs_for_generation`, `_get_candidate_generator`
        (5.2: prompt lookup is refused), `_valid_auto_compile_criteria`, and in newer releases `_prefill`,
        `_prepare_position_ids_for_generation`, `_supports_mm_encoder_outputs` and `init_continuous_batching`
    `model.model`: `forward`
    `model.model.language_model`, in Idefics 3 and SmolVLM `model.model.text_model`: `forward` (decoder.py), always in
        Qwen3-VL, Qwen3.5 and families with 1-D positions, in others where layers merge on entry or attention counts the
        tokens that a merged token stands for. Its rotary_emb is another module (5.2: it gives a table for each axis)
    `model.model.language_model.layers[n]`, where FastV runs as published: `forward` (seeing_ahead.py)
    `model.lm_head`, from the first pass on that computes only the loss: `forward` (loss.py)
    `model.model.visual`, `model.model.visual.blocks[n]`, where a step works inside Qwen's tower: `forward`
        (tower_blocks.py)
    `model.model.vision_tower`, `model.model.vision_tower.encoder`, `model.model.vision_tower.encoder.layer[n]`, where a
        step works inside InternVL's tower: `forward` (tile_blocks.py)
    `cache`, each KV cache that a prompt was compressed into: `reorder_cache`, `batch_select_indices`,
        `batch_repeat_interleave` and `reset` (caches.py)

In older transformers (5.2) also of .model.visual, where a step drops cells of pictures, and only while it runs:
rot_pos_emb, fast_pos_embed_interpolate and get_window_index (pixels.py). fuse() replaces the forward of norms, MLPs and
attentions (fused.py), of the classes in fused_classes.py.

add_pvc() (pvc/) changes the __class__ of a model, and of the parts that get new modules, to a subclass:

    InternVL: `model`, `model.model`, `model.model.vision_tower.encoder`, `model.model.vision_tower.encoder.layer[n]`,
        `model.model.multi_modal_projector`
    Qwen2.5-VL: `model`, `model.model.visual`, `model.model.visual.blocks[n]`, `model.model.visual.merger`

compat.py handles what differs between these versions (such as the KV cache's name), known.py lists the parts that a
decoder may have.

Why transformers' own hooks are not used (as read in 5.2.0, 5.22.2 and 5.24.0):

    AttentionInterface: an entry is global to the process and is chosen by config._attn_implementation; this package
        changes neither. It is called after the rotary embedding, so that the fused rotary operator would still need an
        override. The vision tower calls it once per window, unless its name contains "flash", but then transformers
        treats it as flash attention in other places, too. An entry with its mask would be as long as the override of a
        decoder's attention, and could not replace the tower's.
    AttentionMaskInterface: an implementation without an entry gets no mask at all, not even for padding; with an entry
        it gets transformers' 4D mask, which the segments of a padded prompt are meant to avoid.
    kernel layers (for norms, and in newer releases for the rotary embedding): they need the package `kernels`, which
        downloads the code that it runs from the hub, and are mapped by class name, not by instance.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch

_SAVED = "_ppe_saved_methods"  # attribute of a module: {method name: _Override}
_HOOKED = "_old_forward"  # where accelerate's hooks keep the forward that they call


@dataclass(frozen=True)
class _Override:
    """One method of one instance.

    Args:
        function: called as function(module, **kwargs) in place of the method.
        saved: the instance's own attribute of that name from before, or None.
        idle: whether it was taken back but had to stay installed, because other code has wrapped it meanwhile.
    """

    function: Callable
    saved: Callable | None
    idle: bool = False


def override(module: torch.nn.Module, name: str, function: Callable, show: tuple[str, ...] = ()) -> None:
    """Make `function(module, **kwargs)` the method `name` of this instance.

    Callers see the class's signature; arguments that they pass by position reach `function` by name. An idle override
    of that name, which other code has wrapped, is put in force again inside its wrapper.

    Args:
        show: parameters to show in the signature in addition to the class's.
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
    # Not a bound method: torch.compile would look it up as the attribute of that name, which is the override.
    return saved if saved is not None else functools.partial(getattr(type(module), name), module)


def is_overridden(module: torch.nn.Module, name: str) -> bool:
    """Whether an override of that name is in force on this instance."""
    override = vars(module).get(_SAVED, {}).get(name)
    return override is not None and not override.idle


def is_untouched(module: torch.nn.Module, name: str) -> bool:
    """Whether a method is the class's, apart from an override of ours or a hook of accelerate."""
    method = vars(module).get(_slots(module, name)[-1])
    ours = name in vars(module).get(_SAVED, {})
    return ours or method is None or getattr(method, "__func__", None) is getattr(type(module), name)


def restore_methods(module: torch.nn.Module) -> None:
    """Take back every override of this instance. A wrapper that other code has put around one (mixed precision, a hook)
    stays in place; the override inside it stays, idle, and calls the previous method."""
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
    """The attributes that may hold a method: accelerate's hooks replace forward by their own, keep the previous one in
    _HOOKED, and restore it from there when they are removed."""
    return [name, _HOOKED] if name == "forward" and _HOOKED in vars(module) else [name]


def _is_ours(method: Any) -> bool:
    """Whether a method is itself an override, and not a wrapper of one with copies of its attributes."""
    function = getattr(method, "__func__", method)
    return getattr(function, "_ppe_itself", None) is function


def is_shallow_copy(module: torch.nn.Module) -> bool:
    """Whether this is a copy.copy of a module with overrides: its overrides and submodules are the original's."""
    methods = [vars(module).get(name) for name in vars(module).get(_SAVED, ())]
    return any(isinstance(method, MethodType) and method.__self__ is not module for method in methods)


def own_submodules(module: torch.nn.Module, *names: str) -> None:
    """Give a shallow copy its own dict of submodules, with shallow copies (of the same parameters) for these names."""
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
    outer: Any = replacement  # functions have these attributes; their type in typeshed does not
    inner: Any = alone
    for function in (outer, inner):
        functools.update_wrapper(function, method)
        function.__signature__ = signature.replace(parameters=shown)
        function._ppe_itself = function
    # accelerate's unwrap_model removes mixed precision by following __wrapped__ to its end, so that is ours, too.
    outer.__wrapped__ = inner
    del inner.__wrapped__
    return outer
