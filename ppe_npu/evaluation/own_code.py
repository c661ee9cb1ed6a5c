"""A benchmark's own code: where it raised an exception, and a mark that shows whether it has changed."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ppe_npu.errors import InputError, UserError
from ppe_npu.evaluation.rows import FAULTS, fault_of
from ppe_npu.utils.reading import checksum

_INSTALLED = ("site-packages", "dist-packages")


def called(benchmark: Any) -> str:
    """A benchmark's name for a message: its class's name if it has none."""
    return str(getattr(benchmark, "name", None) or type(benchmark).__name__)


@contextlib.contextmanager
def calling(benchmark: Any, method: str) -> Iterator[None]:
    """A context for a call of the benchmark's method: what it raises becomes an InputError of one line that names the
    method, and the file and line of the benchmark's code. A UserError is raised as it is."""
    try:
        yield
    except UserError:
        raise
    except FAULTS as error:
        at = place(error, modules_of(type(benchmark)))
        told = f" at {at}" if at else ""
        raise InputError(f"{method}() of {called(benchmark)} failed{told}: {fault_of(error)}") from error


def modules_of(kind: type) -> set[str]:
    """The names of the modules in which a class and its base classes are defined."""
    return {base.__module__ for base in kind.__mro__}


def place(error: BaseException, modules: Collection[str]) -> str:
    """ "file.py:line" of the innermost call in one of the modules when an error was raised; "" if there is none."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") in modules:
            found = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def code_mark(benchmark: Any) -> str | None:
    """Checksum of the code of a user's benchmark: of the methods of its class and base classes, and of the files that
    define them or other modules of the user that these import. None for a benchmark of this package, whose scoring has
    an edition instead."""
    if _is_ours(type(benchmark).__module__):
        return None
    classes = [kind for kind in type(benchmark).__mro__ if not _is_known(kind.__module__)]
    modules = {kind.__module__ for kind in classes}
    for name in sorted(modules):
        modules |= set(filter(_is_users, _imported(sys.modules.get(name))))
    files = sorted(filter(None, map(_digest, modules)))
    return checksum([[kind.__qualname__ for kind in classes], [_methods(kind) for kind in classes], files])


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "ppe_npu"


def _is_known(module: str) -> bool:
    """Whether a module belongs to this package or to Python."""
    return _is_ours(module) or module.partition(".")[0] in sys.stdlib_module_names


def _is_users(module: str) -> bool:
    """Whether a module is neither known nor installed."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not _is_known(module) and not set(_INSTALLED) & set(Path(file).parts)


def _imported(module: ModuleType | None) -> Iterator[str]:
    """The modules that a module's global modules, functions and classes belong to."""
    for value in list(vars(module).values()) if module is not None else []:
        if isinstance(value, (ModuleType, FunctionType, type)):
            yield value.__name__ if isinstance(value, ModuleType) else str(value.__module__)


def _digest(module: str) -> str | None:
    """Checksum of a module's file; None if it has none that can be read, as in a notebook."""
    file = getattr(sys.modules.get(module), "__file__", None)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file is not None else None
    except OSError:
        return None


def _methods(kind: type) -> list[Any]:
    """The code of a class's methods in plain values. It is what runs, even if the file has changed since its import."""
    functions = (getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(kind).values())
    return [_plain(function.__code__) for function in functions if inspect.isfunction(function)]


def _plain(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), list(code.co_names), [_constant(value) for value in code.co_consts]]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _plain(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # a set's order varies
