"""Checks arguments, picks an implementation for every call, and logs each choice and each refusal once.

It takes the first implementation in `registry.REGISTRY` that is made for the tensors' device, whose package can be
imported, and that does not refuse the arguments. The choice is made per call because fused operators limit the shapes,
dtypes and masks of a call. An implementation that is requested by name is used, or an error is raised; there is no
fallback.

    with dispatch.using(attention="flash_attn", rms_norm="reference"):
        model(**inputs).loss.backward()
    dispatch.chosen()                         # {"attention": "flash_attn", "rms_norm": "reference", ...}
"""

import contextlib
import logging
from collections.abc import Iterator
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ppe_npu.errors import InputError, UserError, shown

from . import registry
from .compiling import traced_once
from .registry import Implementation

logger = logging.getLogger(__name__)


class ImplementationError(UserError, ValueError):
    """An implementation that was requested by name cannot be used. The message says why, and what to use."""


# Process-wide, not per thread or context: the autograd engine recomputes checkpointed layers in its own threads, which
# must make the same choices as the forward pass.
_requested: dict[str, str] = {}
_chosen: dict[str, list[str]] = {}
_refused: set[tuple[str, str, str]] = set()
_modules: dict[str, ModuleType] = {}  # used only under torch.compile

_DTYPES = {
    "floating": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    "integers": (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}
_CAST = {"floating": "floating point, such as {}.float()", "integers": "integers, such as {}.long()"}
_PLAIN = {"flag": "True or False", "whole": "a whole number", "number": "a finite number"}  # other kinds are tensors


def ops() -> tuple[str, ...]:
    """The names of all ops, in the registry's order."""
    return tuple(dict.fromkeys(entry.op for entry in registry.REGISTRY))


def candidates(op: str, kind: str) -> list[Implementation]:
    """The implementations of `op` for devices of `kind`, best first, whether or not their packages are installed."""
    # A list comprehension, because this runs on every call and a generator would cost a function call per entry.
    return [e for e in registry.REGISTRY if e.op == op and (kind in e.devices or e.devices == registry.ANY)]


def available(op: str, kind: str) -> list[Implementation]:
    """The candidates whose packages can be imported here, best first."""
    return [entry for entry in candidates(op, kind) if entry.missing() is None]


def check_kinds(op: str, **arguments: object) -> None:
    """Raise InputError, naming the argument and its value, unless every argument is of its kind in registry.ARGUMENTS:
    a dense tensor on the device of the others, floating point (16 bits or more) or integer; or a finite number, a whole
    number, or a bool, of Python's or NumPy's types."""
    first: tuple[str, Tensor] | None = None
    for name, kind in registry.ARGUMENTS[op].items():
        given, (kind, _, optional) = arguments[name], kind.partition(" or ")
        if given is None and optional:
            continue
        if isinstance(given, Tensor) and kind not in _PLAIN:
            if given.layout is not torch.strided:
                raise InputError(f"{op}: {name} has the layout {given.layout}: give a dense tensor, {name}.to_dense()")
            first = first or (name, given)
            if given.device != first[1].device:
                where, there = given.device, first[1].device
                raise InputError(f"{op}: {name} is on {where}, {first[0]} on {there}: bring both to one device")
            if given.dtype not in _DTYPES.get(kind, (given.dtype,)):
                raise InputError(f"{op}: {name} is {given.dtype}: give {_CAST[kind].format(name)}")
            continue
        fits = isinstance(given, bool)
        if kind == "flag" and not fits:
            fits = getattr(given, "shape", None) == () and getattr(getattr(given, "dtype", None), "kind", "") == "b"
        elif kind in ("whole", "number"):
            if torch.compiler.is_compiling():  # numbers may be symbols then
                continue
            type_ = Integral if kind == "whole" else Real
            fits = isinstance(given, type_) and not fits and -(2**63) <= given < 2**63  # type: ignore[operator]
        if not fits or kind not in _PLAIN:
            remedy = _PLAIN.get(kind, "a torch tensor")
            raise InputError(f"{op}: {name} is {shown(given)}, a {type(given).__name__}: give {remedy}")


def require(condition: bool, expected: str, got: object) -> None:
    """Raise InputError with the text `expected` and the value `got` unless the condition holds."""
    if not condition:
        raise InputError(f"{expected} {short(got) if isinstance(got, list) else got}")


def short(values: list[int]) -> str:
    """A list as text for a message; a long list is shortened to its first and last items."""
    return str(values) if len(values) <= 8 else f"{values[:4]} ... {values[-3:]}"


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
    return _choose(op, args, kwargs, implementation)[0]


def call(op: str, *args: Any, implementation: str | None = None, **kwargs: Any) -> Any:
    """Selects an implementation (see `select`), notes the choice, and returns its result."""
    entry, module = _choose(op, args, kwargs, implementation)
    if torch.compiler.is_compiling() or entry.name not in _chosen.get(op, ()):
        _note(op, entry.name)
    return getattr(module, entry.function)(*args, **kwargs)


def _choose(op: str, args: tuple, kwargs: dict, name: str | None) -> tuple[Implementation, ModuleType]:
    """The implementation that select() returns, and its module. name: an explicit request."""
    kind = next(value.device for value in args if isinstance(value, torch.Tensor)).type
    name, compiling = name or _requested.get(op), torch.compiler.is_compiling()
    if compiling:
        _import_all()
    entries = [_explicit(op, name, kind)] if name else [entry for entry in candidates(op, kind) if entry.automatic]
    for entry in entries:
        reason = None if entry.requires is None else _missing(entry.requires, entry.distribution)
        if reason is None:
            module = _modules[entry.module] if compiling else registry._module(entry.module)
            reason = _refusal(entry, module, bool(name), args, kwargs)
            if reason is None:
                return entry, module
        if name:
            problem = f"implementation {name!r} was requested, but cannot be used: {reason}"
            raise ImplementationError(f"{op}: {problem}; use one of {_names(op, kind, name)}")
        if reason:
            _log_refusal(op, entry.name, reason)
    raise ImplementationError(f"{op}: no implementation supports this call on {kind}, not even the reference")


def _refusal(entry: Implementation, module: ModuleType, requested: bool, args: tuple, kwargs: dict) -> str | None:
    """Why a call cannot have this implementation, or None if it can; "" if it is skipped without being logged.

    Args:
        requested: whether it was requested by name.
    """
    if entry.made_for is not None and not getattr(module, entry.made_for)(*args, **kwargs):
        return "it is not made for such a call" if requested else ""
    small = entry.least_tokens > 0 and args[0].shape[1] < entry.least_tokens
    if not requested and (small or (torch.compiler.is_compiling() and not entry.traced)):
        return ""
    if not entry.gradient and torch.is_grad_enabled():
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if any(tensor.requires_grad for tensor in tensors):
            return "it has no gradient, and an argument requires one"
    return None if entry.verify is None else getattr(module, entry.verify)(*args, **kwargs)


# torch.compile traces the choice of an implementation, which is valid for the same shapes and dtypes as the compiled
# code. A function marked `traced_once` runs once, while tracing, and adds nothing to the graph, which imports and
# logging would break.


@traced_once
def _import_all() -> None:
    """Fills `_modules` at once, because the compiler does not see entries that are added after it has read the dict."""
    for entry in registry.REGISTRY:
        if entry.missing() is None:
            _modules[entry.module] = registry._module(entry.module)


@traced_once
def _missing(package: str, distribution: str | None) -> str | None:
    return registry._import_problem(package, distribution)


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
