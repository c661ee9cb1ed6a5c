"""Files of records -> raw records, each with its file and line. A line that is no JSON does not affect the others."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line
from ppe_npu.utils.escape import printable

_LINES = ".jsonl"
_OTHER = {  # the first bytes of files that are not UTF-8
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b": "compressed with gzip",
    b"PK\x03\x04": "compressed with zip",
    b"(\xb5/\xfd": "compressed with zstd",
    b"PAR1": "parquet",
}


class Repeated(dict):
    """A JSON object that has a key twice, so that it is unclear which value was meant."""

    key: str


def read_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file and line, parsed record); for a line that is no JSON, the InputError that says so is the record.

    Raises:
        InputError: a file that cannot be read, or that has another form than its name says.
    """
    data, name, file = _read(path), printable(path.name), f"training data {printable(path)}"
    if path.suffix.lower() != _LINES:
        parsed = _parse(data)
        if isinstance(parsed, InputError):
            raise InputError(f"{file} {parsed}: a file with one record per line needs the ending {_LINES}")
        if not isinstance(parsed, list):
            what = "one object" if isinstance(parsed, dict) else f"a {type(parsed).__name__}"
            raise InputError(f"{file} contains {what}, not a list of records: put its records into [ ]")
        yield from ((f"{name} record {number}", record) for number, record in enumerate(parsed, 1))
        return
    if data[:64].lstrip()[:1] == b"[" and _is_records(_parse(data)):
        raise InputError(f"{file} is one list, not one record per line: give it the ending .json")
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield f"{name} line {number}", _parse(line)


def check_readable(path: Path) -> None:
    """Raise InputError if there is no file to read."""
    if (reason := _why_not(path)) is not None:
        raise _unreadable(path, reason)


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"training data {printable(path)} cannot be read ({reason}): name a .json or .jsonl file")


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and (not value or isinstance(value[0], dict))


def _read(path: Path) -> bytes:
    """The bytes of a UTF-8 file, without its byte order mark."""
    check_readable(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, first_line(error)) from error
    kind = next((kind for mark, kind in _OTHER.items() if data.startswith(mark)), None)
    if kind is None and b"\0" in data[:4]:
        kind = "UTF-16 or UTF-32"
    if kind is not None:
        raise InputError(f"training data {printable(path)} cannot be read (it is {kind}): save it as JSON in UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def _why_not(path: Path) -> str | None:
    """Why a path is not opened, or None. Only files are, because reading a pipe or a device may never end."""
    try:
        if path.is_file():
            return None
        return "it is a folder" if path.is_dir() else "it is not a file" if path.exists() else "it does not exist"
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        return first_line(error)


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return InputError(f"is not JSON (not UTF-8: {error.reason} at byte {error.start})")
    except RecursionError:
        return InputError("is not readable JSON (it is nested too deeply)")
    except ValueError as error:
        return InputError(f"is not JSON ({first_line(error)})")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated, seen = Repeated(found), set()
    repeated.key = next(key for key, _ in pairs if key in seen or seen.add(key))
    return repeated
