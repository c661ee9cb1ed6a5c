"""Packages that only some work needs: imported when it is asked for, with the remedy where they are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ppe_npu.errors import InputError, first_line


def optional(module: str, work: str, install: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its full name ("peft", "pyarrow.parquet").
        work: what needs it, as the message's subject ("adapter kind='lora'").
        install: what pip takes ("ppe-npu[train]").

    Raises:
        InputError: the package is not installed, or is and cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise InputError(
                f"{work} needs {package}, which is not installed: pip install {_quoted(install)}"
            ) from error
        raise InputError(_broken(package, work, install, error)) from error
    except (ImportError, OSError) as error:  # OSError: a shared library that is not there
        raise InputError(_broken(package, work, install, error)) from error


def _broken(package: str, work: str, install: str, error: BaseException) -> str:
    why = first_line(error)
    return f"{work} needs {package}, which cannot be imported ({why}): pip install --force-reinstall {_quoted(install)}"


def _quoted(install: str) -> str:
    return f'"{install}"' if "[" in install else install
