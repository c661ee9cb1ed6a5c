"""Paths that a user gives, checked before anything is opened."""

from __future__ import annotations

from pathlib import Path

from ppe_npu.data.places import refuse_address
from ppe_npu.errors import InputError, first_line


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL: existing_file says so
        return False


def existing_file(path: str | Path, kind: str) -> Path:
    refuse_address(path, kind)
    path = Path(path).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise InputError(f"{kind} {path} cannot be a file ({first_line(error)}): check the path") from error
    if not there:
        raise InputError(f"{kind} {path} does not exist: check the path")
    if not path.is_file():
        raise InputError(f"{kind} {path} is a folder: give the path of a file")
    return path
