"""Picks an implementation for every call, and says once which and why.

It takes the first implementation in `registry.REGISTRY` that is made for the tensors' device, whose package can be
imported, and that does not refuse the arguments. The choice is made per call because fused operators limit the shapes,
dtypes and masks of a call. A request for an implementation by name gets that one or an error, never another one.

    with dispatch.using(attention="flash_attn", rms_norm="reference"):
        model(**inputs).loss.backward()
    dispatch.chosen()                         # {"attention": "flash_attn", "rms_norm": "reference", ...}
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ppe_npu.errors import UserError

from . import registry
from .compiling import traced_once
from .registry import Implementation

logger = logging.getLogger(__name__)


class ImplementationError(UserError, ValueError):
    """An implementation that was requested by name cannot be used. The message says why, and what to use."""


# Process-wide, not per thread or context: the autograd engine recomputes checkpointed layers in threads of its own,
# which have to choose as the forward pass did.
_requested: dict[str, str] = {}
_chosen: dict[str, list[str]] = {}
_refused: set[tuple[str, str, str]] = set()
_functions: dict[tuple[str, str], Callable] = {}  # for torch.compile alone: (module, name) -> function


def ops() -> tuple[str, ...]:
    """The names of all ops, in the registry's order."""
    return tuple(dict.fromkeys(entry.op for entry in registry.REGISTRY))


def candidates(op: str, kind: str) -> list[Implementation]:
    """The implementations of `op` for devices of `kind`, best first, whether or not their packages are installed."""
    # One comprehension: this is asked of every call, and every entry that a generator gives is a call of its own.
    return [e for e in registry.REGISTRY if e.op == op and (kind in e.devices or e.devices == registry.ANY)]


def available(op: str, kind: str) -> list[Implementation]:
    """The candidates whose packages can be imported here, best first."""
    return [entry for entry in candidates(op, kind) if entry.missing() is None]


@contextlib.contextmanager
def using(**requested: str) -> Iterator[None]:
    """Requests implementations by name, op by op, until the context ends.

    The request holds for the whole process. A backward pass that recomputes layers (gradient checkpointing) has to run
    inside the context as well. The argument `implementation=` of a call takes precedence.

    Raises:
        ImplementationError: at once if an op or name is unknown; at the call if its device, package or arguments
            rule the implementation out.
    """
    for op, name in requested.items():
        _known(op, name)
    before = dict(_requested)
    _requested.update(requested)
    try:
        yield
    finally:
        _requested.clear()
        _requested.update(before)


def chosen() -> dict[str, str]:
    """op -> implementation, for every op called since `reset`; "a + b" if different calls got different ones."""
    return {op: " + ".join(names) for op, names in _chosen.items()}


def reset() -> None:
    """Forgets what was chosen and what was logged, as at the start of a run. Requests made by `using` stay."""
    _chosen.clear()
    _refused.clear()


def select(op: str, *args: Any, implementation: str | None = None, **kwargs: Any) -> Implementation:
    """The implementation that a call of `op` with these arguments gets.

    The device is that of the first tensor among `args`. `implementation` is an explicit request.

    Raises:
        ImplementationError: an explicit request cannot be met.
    """
    device = next(value.device for value in args if isinstance(value, torch.Tensor))
    name = implementation or _requested.get(op)
    if name is not None:
        entry = _explicit(op, name, device.type)
        reason = _reason(entry, args, kwargs)
        if reason is not None:
            problem = f"implementation {name!r} was asked for and cannot be used: {reason}"
            raise ImplementationError(f"{op}: {problem}; use one of {_names(op, device.type, name)}")
        return entry
    for entry in candidates(op, device.type):
        if not (entry.automatic and _fits(entry, entry.made_for, args, kwargs)):
            continue
        if not _fits(entry, entry.worthwhile, args, kwargs):
            continue
        reason = _reason(entry, args, kwargs)
        if reason is None:
            return entry
        _log_refusal(op, entry.name, reason)
    raise ImplementationError(f"{op}: no implementation supports this call on {device.type}, not even the reference")


def call(op: str, *args: Any, implementation: str | None = None, **kwargs: Any) -> Any:
    """Selects an implementation (see `select`), notes the choice, and returns its result."""
    entry = select(op, *args, implementation=implementation, **kwargs)
    if torch.compiler.is_compiling() or entry.name not in _chosen.get(op, ()):
        _note(op, entry.name)
    return _function(entry, entry.function)(*args, **kwargs)


def _reason(entry: Implementation, args: tuple, kwargs: dict) -> str | None:
    missing = None if entry.requires is None else _missing(entry.requires)
    if missing is not None:
        return missing
    if not _fits(entry, entry.made_for, args, kwargs):
        return "it is not made for such a call"
    if not entry.gradient and torch.is_grad_enabled():
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if any(tensor.requires_grad for tensor in tensors):
            return "it has no gradient, and an argument requires one"
    return None if entry.verify is None else _function(entry, entry.verify)(*args, **kwargs)


def _fits(entry: Implementation, name: str | None, args: tuple, kwargs: dict) -> bool:
    """What a function of its module that a call may have to please says of one; True where there is none."""
    return name is None or bool(_function(entry, name)(*args, **kwargs))


# torch.compile traces the choice, which holds for shapes and dtypes, as the compiled code does. A function marked
# `traced_once` runs once, while tracing, and leaves nothing in the graph, which imports and logging would break.


def _function(entry: Implementation, name: str) -> Callable:
    """One of the functions in its module."""
    if not torch.compiler.is_compiling():
        return getattr(registry._module(entry.module), name)
    _find_all()
    return _functions[entry.module, name]


@traced_once
def _find_all() -> None:
    """Fills `_functions` in one go: the compiler does not see what is added after it has read them."""
    for entry in registry.REGISTRY:
        if entry.missing() is None:
            for name in filter(None, (entry.function, entry.verify, entry.made_for, entry.worthwhile)):
                _functions[entry.module, name] = getattr(registry._module(entry.module), name)


@traced_once
def _missing(package: str) -> str | None:
    return registry._import_problem(package)


@traced_once
def _note(op: str, name: str) -> None:
    names = _chosen.setdefault(op, [])
    if name not in names:
        names.append(name)
        logger.info("%s -> %s", op, name)


def _known(op: str, name: str) -> None:
    names = list(dict.fromkeys(entry.name for entry in registry.REGISTRY if entry.op == op))
    if not names:
        raise ImplementationError(f"op {op!r} is unknown: use one of {', '.join(ops())}")
    if name not in names:
        raise ImplementationError(f"{op}: implementation {name!r} is unknown: use one of {', '.join(names)}")


def _explicit(op: str, name: str, kind: str) -> Implementation:
    _known(op, name)
    for entry in candidates(op, kind):
        if entry.name == name:
            return entry
    raise ImplementationError(f"{op}: implementation {name!r} does not run on {kind}: use one of {_names(op, kind)}")


def _names(op: str, kind: str, refused: str | None = None) -> str:
    return ", ".join(entry.name for entry in candidates(op, kind) if entry.name != refused)


@traced_once
def _log_refusal(op: str, name: str, reason: str) -> None:
    key = (op, name, reason)
    if key not in _refused:
        _refused.add(key)
        logger.warning("%s: %s is not used: %s", *key)
