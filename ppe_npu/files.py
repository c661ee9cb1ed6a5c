"""Files and folders that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """What the system refuses inside (a full disk, a place that may not be written to) names the file and the remedy.

    Raises:
        InputError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or first_line(error)}): make room there, or name another place"
        ) from error


def check_regular(path: str | Path) -> None:
    """Whether a file that is there can be read without waiting for ever: it is no pipe, device or folder.

    Raises:
        InputError: it is one.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:  # not there; or not to be looked at, which opening it will say
        return
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is a folder, a pipe or a device, not a file: move it away, or name another place")


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text so that path holds the old content or all of the new one, even after a kill or a power cut."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """write_text of bytes."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb", buffering=0) as file:
                write_whole(file, data)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    return path


def write_whole(file: Any, data: bytes) -> None:
    """All of data into an unbuffered file, of which the system may take a part at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_json(path: str | Path, value: Any) -> Path:
    """write_text of a JSON value, indented."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A fresh folder to fill; when the block ends without error it takes the place of `path` and of what was there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        # A folder that holds something cannot be replaced in one step: the old one steps aside first.
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
