"""Training data in LLaVA's form, checked before anything long starts.

A record is one JSON object, in a list (.json) or one a line (.jsonl):

    {"id": ..., "image": "a.png" or ["a.png", "b.png"], "video": ..., "independent": false,
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}, ...]}

Each <image> and <video> in a human turn stands for the next image or video. In an "independent" record every human/gpt
pair is a question of its own about the same visuals: the collator packs them so that no pair sees another.

docs/data.md describes the form and what is checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from ppe_npu.data.paths import address_fault
from ppe_npu.data.pictures import image_size
from ppe_npu.data.videos import video_header
from ppe_npu.inputs import PLACEHOLDERS, InputError, split_placeholders

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SHOWN = 3  # faults that an error message spells out
_PROBES: dict[str, Callable[[str], Any]] = {"image": image_size, "video": video_header}
_AT_ONCE = 4096  # files whose headers wait for a thread
BAR_AFTER = 3.0  # seconds of work after which a progress bar shows


@dataclass(frozen=True)
class Record:
    """One checked training record.

    Attributes:
        where: file and line, for messages.
        images, videos: absolute paths.
        turns: (role, text) with role system, user or assistant; placeholders still in the text.
        independent: every user/assistant pair is a question of its own.
        id: the record's own, else file and line.
    """

    where: str
    images: tuple[str, ...]
    videos: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    independent: bool = False
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or self.where)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation in transformers' message form."""
        images, videos = list(self.images), list(self.videos)
        messages = []
        for role, text in self.turns:
            taken = [[items.pop(0) for _ in range(text.count(PLACEHOLDERS[kind]))] for kind, items in
                     (("image", images), ("video", videos))]  # fmt: skip
            messages.append({"role": role, "content": split_placeholders(text, *taken, self.where)})
        return messages

    def questions(self) -> list[list[dict[str, Any]]]:
        """Of an independent record: each pair as the conversation that asks it alone, with all visuals."""
        messages = self.messages()
        visuals = [item for item in messages[0]["content"] if item["type"] != "text"]
        pairs = zip(messages[::2], messages[1::2])
        return [
            [{"role": "user", "content": visuals + [i for i in user["content"] if i["type"] == "text"]}, assistant]
            for user, assistant in pairs
        ]


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used: where it stands, its id, and why not."""

    where: str
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Checked:
    """What is in data files.

    Attributes:
        records: those that can be used.
        faults: the others. Both in the files' order.
        headers: of all files of the records, {"image": {path: (height, width)}, "video": {path: VideoHeader}}.
    """

    records: list[Record]
    faults: list[Fault]
    headers: Mapping[str, Mapping[str, Any]]


class ChatDataset(Dataset):
    """Records by number; pictures are read by the collator, a batch at a time."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


def read_records(files: str | Path | Sequence[str | Path], data_root: str | Path | None = None) -> list[Record]:
    """All records of one or several files, each of which can be used; arguments as check_records.

    Raises:
        InputError: a file that cannot be read, or records that cannot be used, by line and reason, in one line.
    """
    checked = check_records(files, data_root)
    if checked.faults:
        raise InputError(complaint(checked.faults, len(checked.records) + len(checked.faults)))
    return checked.records


def complaint(faults: Sequence[Fault], total: int) -> str:
    """One line about records that cannot be used, of `total`: how many, and the first of them."""
    more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
    return f"{len(faults)} of {total} records cannot be used: {'; '.join(map(str, faults[:_SHOWN]))}{more}"


def check_records(files: str | Path | Sequence[str | Path], data_root: str | Path | None = None) -> Checked:
    """Read and check all records of one or several files; every picture's and video's header is read once.

    Args:
        files: .json or .jsonl files, one after the other.
        data_root: what relative image and video paths start from; None: the folder of the file that names them.

    Raises:
        InputError: a data file that cannot be read, or no records at all.
    """
    paths = [Path(file).expanduser() for file in ([files] if isinstance(files, (str, Path)) else files)]
    if not paths:
        raise InputError("no training data was given: name a .json or .jsonl file")
    found: list[Record | Fault] = []
    for path in paths:
        root = Path(data_root).expanduser() if data_root else path.parent
        found += [_check_record(raw, where, _id(raw, where), root) for where, raw in _read_file(path)]
    if not found:
        raise InputError(f"training data {', '.join(map(str, paths))} holds no records")
    headers = read_headers(record for record in found if isinstance(record, Record))
    records, faults = [], []
    for item in found:
        if isinstance(item, Record):
            broken = (headers[kind][path] for kind, path in _files(item))
            error = next((header for header in broken if isinstance(header, InputError)), None)
            item = item if error is None else Fault(item.where, item.id, str(error))
        (records if isinstance(item, Record) else faults).append(item)
    return Checked(records, faults, headers)


def read_headers(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """The headers of all files that records name, each read once, by threads.

    Returns:
        {"image": {path: (height, width)}, "video": {path: VideoHeader}}; in place of a header that cannot be read the
        InputError that says why.
    """
    todo = list(dict.fromkeys(file for record in records for file in _files(record)))
    headers: dict[str, dict[str, Any]] = {kind: {} for kind in _PROBES}
    bar = tqdm(total=len(todo), desc="files", unit="file", delay=BAR_AFTER, disable=None, leave=False)
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


def _id(raw: Any, where: str) -> str:
    value = raw.get("id") if isinstance(raw, dict) else None
    return str(value) if isinstance(value, (str, int)) and value != "" else where


def _read_file(path: Path) -> list[tuple[str, Any]]:
    """[(file and line, parsed record)]; a line that is no JSON comes back as the InputError that says so."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"training data {path} cannot be read ({error}): name a .json or .jsonl file") from error
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [(f"{path.name} line {number}", _parse(line)) for number, line in lines]
    parsed = _parse(text)
    if isinstance(parsed, InputError):
        raise InputError(f"training data {path} {parsed}: one record a line needs the ending .jsonl")
    if not isinstance(parsed, list):
        raise InputError(f"training data {path} holds a {type(parsed).__name__}, not a list of records")
    return [(f"{path.name} record {number}", record) for number, record in enumerate(parsed, 1)]


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        return InputError(f"is not JSON ({error})")


def _check_record(raw: Any, where: str, id_: str, root: Path) -> Record | Fault:
    """A raw record, its files not yet looked at."""
    try:
        return Record(where, *_parts(raw, root), id=id_)
    except InputError as error:
        return Fault(where, id_, str(error))


def _parts(raw: Any, root: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, str], ...], bool]:
    """A raw record's images, videos, turns, and whether it is independent; InputError says what is wrong."""
    if isinstance(raw, InputError):
        raise raw
    if not isinstance(raw, dict):
        raise InputError(f"is a {type(raw).__name__}, not a record")
    images, videos = _paths(raw, "image", root), _paths(raw, "video", root)
    turns = _check_turns(raw.get("conversations"))
    for kind, given in (("image", images), ("video", videos)):
        held = sum(text.count(PLACEHOLDERS[kind]) for _, text in turns)
        if held != len(given):
            raise InputError(f"{held} {PLACEHOLDERS[kind]} for {len(given)} {kind}(s) in its human turns")
    independent = raw.get("independent", False)
    if not isinstance(independent, bool):
        raise InputError(f"independent is {independent!r}: use true or false")
    if independent:
        _check_independent(turns, len(images) + len(videos))
    return images, videos, turns, independent


def _paths(raw: dict[str, Any], key: str, root: Path) -> tuple[str, ...]:
    value = raw.get(key)
    values = [] if value is None or value == "" else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
        raise InputError(f"{key} is {value!r}: give a path or a list of paths")
    return tuple(item if address_fault(item) else str(root / item) for item in values)  # which reading it will say


def _check_turns(conversations: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(conversations, list) or not conversations:
        raise InputError("has no conversations")
    turns = []
    for turn in conversations:
        said = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        role = _ROLES.get(said) if isinstance(said, str) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role is None or not isinstance(text, str):
            raise InputError("has a turn that is not {'from': human, gpt or system, 'value': text}")
        if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
            raise InputError("has a text that is no Unicode: half of a surrogate pair stands alone")
        turns.append((role, text))
    spoken = turns[1:] if turns[0][0] == "system" else turns
    if not spoken or [role for role, _ in spoken] != ["user", "assistant"] * (len(spoken) // 2):
        raise InputError("its turns do not alternate from human to gpt")
    if any(token in text for role, text in turns if role != "user" for token in PLACEHOLDERS.values()):
        raise InputError("has <image> or <video> outside its human turns")
    if not all(text.strip() for role, text in spoken if role == "assistant"):
        raise InputError("has an empty answer")
    return tuple(turns)


def _check_independent(turns: Sequence[tuple[str, str]], visuals: int) -> None:
    """Every question must begin with the same visuals, so that they are one common prefix."""
    if turns[0][0] == "system":
        raise InputError("an independent record takes no system turn")
    if not visuals:
        raise InputError("an independent record needs an image or a video that its questions share")
    text = turns[0][1]
    for _ in range(visuals):
        text = text.lstrip("\n")
        token = next((token for token in PLACEHOLDERS.values() if text.startswith(token)), None)
        if token is None:
            raise InputError("an independent record's placeholders must open its first human turn")
        text = text.removeprefix(token)
