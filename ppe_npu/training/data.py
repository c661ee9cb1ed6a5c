"""Training data in LLaVA's form, checked before anything long starts.

A record is one JSON object, in a list (.json) or one per line (.jsonl):

    {"id": ..., "image": "a.png" or ["a.png", "b.png"], "video": ..., "independent": false,
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}, ...]}

Each <image> and <video> in a human turn stands for the next image or video. In an "independent" record every human/gpt
pair is a question of its own about the same visuals: the collator packs them so that no pair sees another.

docs/data.md describes the form and what is checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ppe_npu.data.pictures import image_size
from ppe_npu.data.places import Room
from ppe_npu.data.videos import video_header
from ppe_npu.errors import InputError
from ppe_npu.training.record_files import check_readable, read_file
from ppe_npu.training.record_form import check_record
from ppe_npu.training.records import Fault, Record
from ppe_npu.utils.paths import expanded, is_folder, shown_path
from ppe_npu.utils.progress import Progress

__all__ = ["ChatDataset", "Checked", "Fault", "Record", "check_records", "complaint", "read_headers", "read_records"]

_SHOWN = 3  # faults that an error message spells out
_PROBES: dict[str, Callable[[str], Any]] = {"image": image_size, "video": video_header}
_AT_ONCE = 4096  # files that are queued for the threads at a time
_OUTSIDE = "name a data root that contains it (--data-root), or allow it (--allow-outside)"
BAR_AFTER = 3.0  # seconds of work after which a progress bar shows


@dataclass(frozen=True)
class Checked:
    """The contents of data files.

    Attributes:
        records: those that can be used, in the order of the files.
        faults: the others, in the same order.
        headers: {"image": {path: (height, width)}, "video": {path: VideoHeader}} of the records' pictures and videos.
    """

    records: list[Record]
    faults: list[Fault]
    headers: Mapping[str, Mapping[str, Any]]


class ChatDataset(Dataset):
    """Records by number. Their pictures are read by the collator, one batch at a time."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


def read_records(
    files: str | Path | Sequence[str | Path], data_root: str | Path | None = None, allow_outside: bool = False
) -> list[Record]:
    """All records of one or several files, all of which must be usable; arguments as for check_records.

    Raises:
        InputError: a file that cannot be read, or records that cannot be used; one line with their places and reasons.
    """
    checked = check_records(files, data_root, allow_outside)
    if checked.faults:
        raise InputError(complaint(checked.faults, len(checked.records) + len(checked.faults)))
    return checked.records


def complaint(faults: Sequence[Fault], total: int) -> str:
    """One line that says how many of `total` records cannot be used, and names the first of them with their faults."""
    more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
    return f"{len(faults)} of {total} records cannot be used: {'; '.join(map(str, faults[:_SHOWN]))}{more}"


def check_records(
    files: str | Path | Sequence[str | Path], data_root: str | Path | None = None, allow_outside: bool = False
) -> Checked:
    """Read and check all records of one or several files; every picture's and video's header is read once.

    Args:
        files: .json or .jsonl files, whose records are joined in this order.
        data_root: folder that relative image and video paths start from; None: that of the file that names them.
        allow_outside: whether paths may lead out of that folder, as absolute paths, by "..", or through links.

    Raises:
        InputError: a data file that cannot be read, or no records at all.
    """
    paths = check_paths([files] if isinstance(files, (str, Path)) else files, data_root)
    if not paths:
        raise InputError("no training data was given: name a .json or .jsonl file")
    found: list[Record | Fault] = []
    for path in paths:
        root = expanded(data_root) if data_root else path.parent
        room = Room(root, allow_outside, remedy=_OUTSIDE)
        found += [check_record(raw, where, room) for where, raw in read_file(path)]
    if not found:
        raise InputError(f"training data {', '.join(map(str, paths))} contains no records: name another file")
    headers = read_headers(record for record in found if isinstance(record, Record))
    records, faults = [], []
    for item in found:
        if isinstance(item, Record):
            broken = (headers[kind][path] for kind, path in _files(item))
            error = next((header for header in broken if isinstance(header, InputError)), None)
            item = item if error is None else Fault(item.where, item.id, str(error))
        (records if isinstance(item, Record) else faults).append(item)
    return Checked(records, faults, headers)


def check_paths(files: Sequence[str | Path], data_root: str | Path | None) -> list[Path]:
    """The paths of data files, after checking that they and the data root exist.

    Raises:
        InputError: a path that is no file, or a root that is no folder.
    """
    paths = [expanded(file) for file in files]
    for path in paths:
        check_readable(path)
    if data_root and not is_folder(data_root):
        raise InputError(
            f"data root {shown_path(data_root)} is not a folder: name the one that the records' paths start from"
        )
    return paths


def read_headers(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """The headers of all pictures and videos that records name, each read once, in parallel threads.

    Returns:
        {"image": {path: (height, width)}, "video": {path: VideoHeader}}; where a header cannot be read, the value is
        the InputError that says why.
    """
    todo = list(dict.fromkeys(file for record in records for file in _files(record)))
    headers: dict[str, dict[str, Any]] = {kind: {} for kind in _PROBES}
    bar = Progress(len(todo), "files", "file", delay=BAR_AFTER, leave=False)
    with bar, ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        for start in range(0, len(todo), _AT_ONCE):
            part = todo[start : start + _AT_ONCE]
            for (kind, path), header in zip(part, pool.map(_probe, part)):
                headers[kind][path] = header
                bar.update()
    return headers


def _probe(file: tuple[str, str]) -> Any:
    kind, path = file
    try:
        return _PROBES[kind](path)
    except InputError as error:
        return error


def _files(record: Record) -> Iterator[tuple[str, str]]:
    """(kind, path) of each of a record's files."""
    for kind, paths in (("image", record.images), ("video", record.videos)):
        for path in paths:
            yield kind, path
