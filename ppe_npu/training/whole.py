"""whole.json: which files a training checkpoint holds, and whether it still holds them as they were written."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ppe_npu.errors import InputError, first_line, shown
from ppe_npu.files import sync_tree
from ppe_npu.models.fingerprint import file_digests
from ppe_npu.training.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE, IDENTITY, WHOLE
from ppe_npu.utils.reading import checksum, json_or_none, read_json

STATE = "trainer_state.json"
_SHARES = "global_step*"  # DeepSpeed's folders of shards
_SUM = "sum"  # checksum of the list itself: without it, a file whose row was removed would go unchecked
# The files that a run needs to resume, each under one of several names; looked for in checkpoints without a list of
# files, or whose list has no checksum.
_NEEDED = (
    (STATE,),
    ("scheduler.pt", _SHARES),
    ("optimizer.pt", _SHARES),
    ("rng_state*.pth",),
    ("config.json", ADAPTER_CONFIG),
    ("model.safetensors", "model.safetensors.index.json", ADAPTER_WEIGHTS, _SHARES),
)


def made_by_train(folder: Path) -> bool:
    """Whether a checkpoint-N was written by a run of this package, not by a plain Trainer, an export, or by hand."""
    return (folder / WHOLE).exists() or ((folder / STATE).exists() and (folder / BASE).exists())


def whole_record(folder: Path, step: int) -> dict[str, Any]:
    """The contents of whole.json; all files in the folder and below it are first synced to the disk.

    Returns:
        {"step", "files": {path from the folder: {"size" (bytes), "digest" (ppe_npu.models.fingerprint.file_digests)}},
        "sum" (checksum of the other two)}.
    """
    sync_tree(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / WHOLE)
    rows = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "digest": digest}
        for path, digest in zip(files, file_digests(files))
    }
    record = {"step": step, "files": rows}
    return {**record, _SUM: checksum(record)}


def check_whole(folder: Path, needed: Callable[[str], bool] | None = None) -> bool:
    """Check that a checkpoint's files are those that were written; all of them are read.

    Args:
        needed: whether a file is checked, given its path from the folder; None: all are, and none may be missing that
            a run needs to resume.

    Returns:
        Whether whole.json lists the files. If not (in one of the first version), they only exist and are readable.

    Raises:
        InputError: a file is missing, or is not what was written; the message names it, and states no remedy.
    """
    record = _read(folder)
    if "files" not in record:
        _check_unlisted(folder, needed)
        return False
    if _SUM not in record and needed is None:
        _check_needed(folder, record["files"])
    rows = {name: row for name, row in record["files"].items() if needed is None or needed(name)}
    for name, row in rows.items():
        _check_size(folder / name, row["size"])
    files = [folder / name for name in rows]
    try:
        digests = file_digests(files)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read ({error.strerror})") from error
    for file, row, digest in zip(files, rows.values(), digests):
        if digest != row["digest"]:
            raise InputError(f"{file} is damaged: its content has changed since it was written, at the same size")
    return True


def _read(folder: Path) -> dict[str, Any]:
    """The contents of a folder's whole.json, checked to be complete and of the folder's step."""
    file = folder / WHOLE
    if not file.is_file():
        raise InputError(f"{file} is {'a folder' if file.is_dir() else 'missing'}")
    record = json_or_none(file)
    if not isinstance(record, dict) or type(record.get("step")) is not int or not _listed(record):
        raise InputError(f"{file} is damaged: it does not list the files of the checkpoint")
    if _SUM not in record and _made_since(folder):
        raise InputError(f"{file} is damaged: the checksum of its list is missing")
    named = folder.name.rpartition("-")[2]
    if named.isdecimal() and int(named) != record["step"]:
        raise InputError(f"{file} is of step {record['step']}, not of step {named}")
    return record


def _made_since(folder: Path) -> bool:
    """Whether the version that wrote a checkpoint adds a checksum to every list: its identity.json has "records"."""
    identity = json_or_none(folder / IDENTITY)
    return isinstance(identity, dict) and "records" in identity


def _listed(record: Mapping[str, Any]) -> bool:
    """Whether a record's files are rows of size and digest, of files inside the folder, and match its checksum."""
    rows, keys = record.get("files", {}), {"size": int, "digest": str}
    if not isinstance(rows, Mapping) or not all(
        isinstance(row, Mapping) and _inside(name) and all(type(row.get(key)) is kind for key, kind in keys.items())
        for name, row in rows.items()
    ):
        return False
    known = {name: {key: row[key] for key in keys} for name, row in rows.items()}
    return _SUM not in record or record[_SUM] == checksum({"step": record["step"], "files": known})


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _check_size(file: Path, size: int) -> None:
    try:
        if not file.is_file():
            raise InputError(f"{file} is {'a folder' if file.is_dir() else 'missing'}")
        found = file.stat().st_size
    except OSError as error:  # a name that is too long; a folder without permission
        raise InputError(f"{shown(str(file))} cannot be accessed ({error.strerror})") from error
    if found != size:
        raise InputError(f"{file} is damaged: it has {found:,} bytes instead of {size:,}")


# -- checkpoints of the first version ----------------------------------------------------------------------------------


def _check_unlisted(folder: Path, needed: Callable[[str], bool] | None) -> None:
    files = sorted(folder.rglob("*"))
    if needed is None:
        _check_needed(folder, [file.relative_to(folder).as_posix() for file in files])
    for file in files:
        if needed is None or needed(file.relative_to(folder).as_posix()):
            _check_readable(file)


def _check_needed(folder: Path, there: Iterable[str]) -> None:
    for names in _NEEDED:
        if not any(fnmatch(file, name) for file in there for name in names):
            raise InputError(f"{folder / names[0]} is missing")


def _check_readable(file: Path) -> None:
    """Raise InputError for a file whose own format shows that it is damaged."""
    try:
        if file.is_dir():
            if file.suffix in _READERS:
                raise ValueError("it is a folder")
        elif file.suffix in _READERS:
            _READERS[file.suffix](file)
    except Exception as error:  # readers may raise anything when bytes are damaged
        raise InputError(f"{file} is damaged ({first_line(error)})") from error


def _read_tensors(file: Path) -> None:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        tensors.keys()


def _read_pickle(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"{broken} in it has a wrong checksum")


def _read_json(file: Path) -> None:
    if not isinstance(read_json(file), dict):
        raise ValueError("it contains no settings")


_READERS: dict[str, Callable[[Path], None]] = {
    ".safetensors": _read_tensors,
    ".pt": _read_pickle,
    ".pth": _read_pickle,
    ".bin": _read_pickle,
    ".json": _read_json,
}
