"""Reading of small files that a user wrote or chose (settings, configs), with a one-line error for each failure."""

from __future__ import annotations

import json
import os
import stat
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line, shown
from ppe_npu.utils.optional import optional

_LARGEST = 64 << 20  # bytes; a tokenizer's file has 11 MB
_LARGEST_YAML = 1 << 20  # PyYAML reads about 1 MB per second
_VALUES = 100_000  # the most values in a YAML file, counting those that aliases repeat


class UnreadableError(InputError):
    """A file cannot be read. why: the reason, in words that fit into a caller's own message."""

    why: str = ""


def _unreadable(path: str | os.PathLike, why: str) -> UnreadableError:
    # Not an argument of the class, because torch recreates a DataLoader worker's error from its message alone.
    error = UnreadableError(f"{path} cannot be read ({why}): fix it, or give another file")
    error.why = why
    return error


def read_text(path: str | os.PathLike, largest: int = _LARGEST) -> str:
    """The text of a file of at most `largest` bytes in UTF-8, with or without a byte order mark.

    Raises:
        UnreadableError: this is not a path, or the file does not exist, is not a regular file (a folder, pipe or
            device), cannot be opened, is too large, or is not UTF-8.
    """
    if not isinstance(path, (str, os.PathLike)):  # a whole number would be taken as a file descriptor
        raise _unreadable(shown(path), f"it is of type {type(path).__name__}, not a path")
    try:
        why = _refusal(os.stat(path), largest)
        data = b"" if why else Path(path).read_bytes()
    except FileNotFoundError:
        raise _unreadable(path, "it does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise _unreadable(shown(path), getattr(error, "strerror", None) or first_line(error)) from error
    if why:
        raise _unreadable(path, why)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"byte {error.start} is not UTF-8: save it as UTF-8") from error


def _refusal(found: os.stat_result, largest: int) -> str | None:
    if stat.S_ISDIR(found.st_mode):
        return "it is a folder"
    if not stat.S_ISREG(found.st_mode):  # a pipe would wait for its writer, a device might never end
        return "it is not a regular file"
    return f"it has {found.st_size:,} bytes, more than the limit of {largest:,}" if found.st_size > largest else None


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file.

    Raises:
        UnreadableError: as read_text; or the file is empty, not JSON, nested too deeply, or has a duplicate key.
    """
    text = _nonempty_text(path)
    try:
        return json.loads(text, object_pairs_hook=_pairs)
    except RecursionError:
        raise _unreadable(path, "it is nested too deeply") from None
    except ValueError as error:
        raise _unreadable(path, first_line(error)) from error


def json_or_none(path: str | os.PathLike) -> Any:
    """The value of a JSON file; None if it does not exist or cannot be read."""
    try:
        return read_json(path)
    except UnreadableError:
        return None


def read_yaml(path: str | os.PathLike) -> Any:
    """The value of a YAML file with plain values.

    Raises:
        UnreadableError: as read_text; or the file is empty, not YAML, nested too deeply, has a duplicate key, or its
            aliases repeat too many values.
        InputError: PyYAML is not installed.
    """
    yaml, text = optional("yaml", f"reading {path}", "pyyaml"), _nonempty_text(path, _LARGEST_YAML)
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise ValueError("it is empty")
        _Size().of(root)
        return loader.construct_document(root)
    except RecursionError:
        raise _unreadable(path, "it is nested too deeply") from None
    except Exception as error:  # for `!!int ""` and similar, PyYAML raises IndexError, KeyError, AttributeError, ...
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: {error.problem}" if mark is not None else first_line(error)
        raise _unreadable(path, where) from error
    finally:
        if loader is not None:
            loader.dispose()


def _nonempty_text(path: str | os.PathLike, largest: int = _LARGEST) -> str:
    text = read_text(path, largest)
    if not text.strip():
        raise _unreadable(path, "it is empty")
    return text


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_keys([key for key, _ in pairs])
    return dict(pairs)


def _check_keys(keys: list[str]) -> None:
    """Raise ValueError for a duplicate key, because all readers would silently drop one of its values."""
    twice = [key for key, count in Counter(keys).items() if count > 1 and key != "<<"]
    if twice:
        raise ValueError(f"the key {shown(twice[0])} is given twice")


class _Size:
    """Counts the values of a YAML document with its aliases expanded, since a few lines can stand for billions."""

    def __init__(self):
        self._known: dict[int, int | None] = {}

    def of(self, node: Any) -> int:
        if id(node) in self._known:
            if self._known[id(node)] is None:
                raise ValueError("an alias contains itself")
            return self._known[id(node)]
        self._known[id(node)] = None
        size = 1
        if isinstance(node.value, list):
            mapping = node.value and isinstance(node.value[0], tuple)
            if mapping:
                _check_keys([key.value for key, _ in node.value if isinstance(key.value, str)])
            for child in node.value:
                size += sum(map(self.of, child)) if mapping else self.of(child)
        if size > _VALUES:
            raise ValueError(f"its aliases expand to more than {_VALUES:,} values")
        self._known[id(node)] = size
        return size


def is_number(value: Any) -> bool:
    """Whether a value from a file is a number that a float can hold: not true, NaN, infinity or a 400-digit integer."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def checksum(value: Any) -> str:
    """Checksum of a JSON value as 8 hex digits, to detect whether a stored value was changed."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"
