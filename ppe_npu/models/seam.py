"""Replacing a module's forward on one instance, and putting back what was there.

Classes stay as they are. A bound method (and no closure) is installed, so that copy.deepcopy of a compressed model
gives an independent compressed model.
"""

import functools
import inspect
from types import MethodType

import torch

_SAVED = "_ppe_saved_forward"


def override_forward(module: torch.nn.Module, forward, hide: str | None = None) -> None:
    """Make `forward(module, **kwargs)` the forward of this instance.

    Callers see the signature that the class has, and may pass its arguments by place: they arrive by name.

    Args:
        hide: a parameter that the signature shall not show.
    """
    vars(module)[_SAVED] = vars(module).get("forward")
    vars(module)["forward"] = MethodType(_with_signature(forward, type(module), hide), module)


def original_forward(module: torch.nn.Module):
    """The forward that was in force before override_forward."""
    saved = vars(module)[_SAVED]
    return saved if saved is not None else MethodType(type(module).forward, module)


def restore_forward(module: torch.nn.Module) -> None:
    saved = vars(module).pop(_SAVED)
    if saved is None:
        del vars(module)["forward"]
    else:
        vars(module)["forward"] = saved


@functools.cache
def _with_signature(forward, cls: type, hide: str | None):
    signature = inspect.signature(cls.forward)
    names = list(signature.parameters)[1:]

    @functools.wraps(cls.forward)
    def replacement(self, *args, **kwargs):
        return forward(self, **dict(zip(names, args)), **kwargs)

    shown = [parameter for name, parameter in signature.parameters.items() if name != hide]
    replacement.__signature__ = signature.replace(parameters=shown)
    return replacement
