"""Optional packages, imported when they are needed; an error says how to install one that is missing."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ppe_npu.errors import InputError, first_line


def optional(module: str, work: str, install: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its full name ("peft", "pyarrow.parquet").
        work: what needs it, as the message's subject ("adapter kind='lora'").
        install: the argument for pip ("peft"). For an extra of this package ("ppe-npu[train]"), the message gives the
            folder that the package was installed from, because it may not be on any index.

    Raises:
        InputError: the package is not installed, or it is installed but cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise InputError(
                f"{work} needs {package}, which is not installed: pip install {named_for_pip(install)}"
            ) from error
        raise InputError(_broken(package, work, install, error)) from error
    except Exception as error:  # a shared library is missing, matplotlib refuses MPLBACKEND, ...
        raise InputError(_broken(package, work, install, error)) from error


def _broken(package: str, work: str, install: str, error: BaseException) -> str:
    remedy = f"pip install --force-reinstall {named_for_pip(install)}"
    return f"{work} needs {package}, which cannot be imported ({first_line(error)}): {remedy}"


def named_for_pip(install: str) -> str:
    """The argument for `pip install`, from `install` as optional() takes it."""
    return f'"{install.replace("ppe-npu", _home(), 1)}"' if "[" in install else install


def _home() -> str:
    """The argument for pip to install this package: its source folder if that still exists, else its name."""
    clone = Path(__file__).resolve().parents[2]
    if (clone / "setup.cfg").is_file():
        return str(clone)
    try:
        said = json.loads(distribution("ppe-npu").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return "ppe-npu"
    folder = url2pathname(urlsplit(said.get("url", "")).path)
    return folder if folder and (Path(folder) / "setup.cfg").is_file() else "ppe-npu"
