"""Replacing methods of one module instance, and putting back what was there.

Classes stay as they are. Bound methods (and no closures) are installed, so that copy.deepcopy of a compressed model
gives an independent compressed model.

Every override, checked against transformers 5.2.0 (by `make test-matrix`), 5.22.2 and 5.24.0:

    compress(), of the model for conditional generation (vision_language.py)
        forward, prepare_inputs_for_generation, _expand_inputs_for_generation, _get_candidate_generator (5.2: prompt
        lookup is refused), _valid_auto_compile_criteria
    compress(), of its .model: forward
    compress(), of its .model.language_model: forward, where layers merge on entry or take the tower's features
        (decoder.py); rotary_emb is another module (5.2: it gives a table for each axis)
    compress(), of its lm_head: forward (loss.py)
    fuse(), of norms, MLPs and attentions: forward (fused.py)

compat.py has what differs between these versions (the KV cache's name among them), known.py what a
decoder may be made of.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from types import MethodType

import torch

_SAVED = "_ppe_saved_methods"


def override(
    module: torch.nn.Module, name: str, function: Callable, hide: str | None = None, show: str | None = None
) -> None:
    """Make `function(module, **kwargs)` the method `name` of this instance.

    Callers see the signature that the class has, and may pass its arguments by place: they arrive by name.

    Args:
        hide: a parameter that the signature shall not show.
        show: a parameter that it shall show, whether the class has it or not.
    """
    vars(module).setdefault(_SAVED, {})[name] = vars(module).get(name)
    vars(module)[name] = MethodType(_with_signature(function, getattr(type(module), name), hide, show), module)


def original(module: torch.nn.Module, name: str) -> Callable:
    """The method that was in force before override()."""
    saved = vars(module)[_SAVED][name]
    # No bound method: torch.compile takes one to be the attribute of that name, which is the override.
    return saved if saved is not None else functools.partial(getattr(type(module), name), module)


def restore_methods(module: torch.nn.Module) -> None:
    """Take every override of this instance back."""
    for name, saved in vars(module).pop(_SAVED, {}).items():
        if saved is None:
            del vars(module)[name]
        else:
            vars(module)[name] = saved


def is_shallow_copy(module: torch.nn.Module) -> bool:
    """Whether this is a copy.copy of a module with overrides: they are the original's, and so are its submodules."""
    methods = [vars(module).get(name) for name in vars(module).get(_SAVED, ())]
    return any(isinstance(method, MethodType) and method.__self__ is not module for method in methods)


def own_submodules(module: torch.nn.Module, *names: str) -> None:
    """Give a shallow copy submodules of its own: shallow copies again, with the same parameters."""
    own = {name: copy.copy(child) if name in names else child for name, child in module._modules.items()}
    vars(module)["_modules"] = own


@functools.cache
def _with_signature(function: Callable, method: Callable, hide: str | None, show: str | None) -> Callable:
    signature = inspect.signature(method)
    names = list(signature.parameters)[1:]

    @functools.wraps(method)
    def replacement(self, *args, **kwargs):
        if _SAVED not in self.__dict__:  # called by a shallow copy after its original was restored
            return method(self, *args, **kwargs)
        return function(self, **dict(zip(names, args)), **kwargs)

    shown = [parameter for name, parameter in signature.parameters.items() if name != hide]
    if show is not None and show not in names:
        rest = [parameter for parameter in shown if parameter.kind is inspect.Parameter.VAR_KEYWORD]
        extra = inspect.Parameter(show, inspect.Parameter.KEYWORD_ONLY, default=None)
        shown = [parameter for parameter in shown if parameter not in rest] + [extra, *rest]
    replacement.__signature__ = signature.replace(parameters=shown)
    return replacement
