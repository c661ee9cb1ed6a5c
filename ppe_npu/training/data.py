"""Training data in LLaVA's form, checked before anything long starts.

A record is one JSON object, in a list (.json) or one a line (.jsonl):

    {"id": ..., "image": "a.png" or ["a.png", "b.png"], "video": ..., "independent": false,
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}, ...]}

Each <image> and <video> in a human turn stands for the next image or video. In an "independent" record every human/gpt
pair is a question of its own about the same visuals: the collator packs them so that no pair sees another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ppe_npu.inputs import PLACEHOLDERS, InputError, split_placeholders

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SHOWN = 3  # faults that an error message spells out


@dataclass(frozen=True)
class Record:
    """One checked training record.

    Attributes:
        where: file and line, for messages.
        images, videos: absolute paths.
        turns: (role, text) with role system, user or assistant; placeholders still in the text.
        independent: every user/assistant pair is a question of its own.
    """

    where: str
    images: tuple[str, ...]
    videos: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    independent: bool = False

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


class ChatDataset(Dataset):
    """Records by number; pictures are read by the collator, a batch at a time."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


def read_records(files: str | Path | Sequence[str | Path], data_root: str | Path | None = None) -> list[Record]:
    """Read and check all records of one or several files.

    Args:
        files: .json or .jsonl files, one after the other.
        data_root: what relative image and video paths start from; None: the folder of the file that names them.

    Raises:
        InputError: a file that cannot be read, or records that cannot be used, by line and reason, in one line.
    """
    paths = [Path(file).expanduser() for file in ([files] if isinstance(files, (str, Path)) else files)]
    if not paths:
        raise InputError("no training data was given: name a .json or .jsonl file")
    records, faults, checked = [], [], set()
    for path in paths:
        root = Path(data_root).expanduser() if data_root else path.parent
        for where, raw in _read_file(path):
            try:
                record = _check_record(raw, where, root)
                _check_files(record, checked)
                records.append(record)
            except InputError as error:
                faults.append(f"{where}: {error}")
    if faults:
        more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        total = len(records) + len(faults)
        raise InputError(f"{len(faults)} of {total} records cannot be used: {'; '.join(faults[:_SHOWN])}{more}")
    if not records:
        raise InputError(f"training data {', '.join(map(str, paths))} holds no records")
    return records


def _read_file(path: Path) -> list[tuple[str, Any]]:
    """[(file and line, parsed record)]; a line that is no JSON comes back as the InputError that says so."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"training data {path} cannot be read ({error}): name a .json or .jsonl file") from error
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
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


def _check_record(raw: Any, where: str, root: Path) -> Record:
    """A raw record -> Record; InputError says what is wrong, without the line."""
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
    return Record(where, images, videos, turns, independent)


def _paths(raw: dict[str, Any], key: str, root: Path) -> tuple[str, ...]:
    value = raw.get(key)
    values = [] if value is None or value == "" else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
        raise InputError(f"{key} is {value!r}: give a path or a list of paths")
    return tuple(str(root / item) for item in values)


def _check_turns(conversations: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(conversations, list) or not conversations:
        raise InputError("has no conversations")
    turns = []
    for turn in conversations:
        role = _ROLES.get(turn.get("from", turn.get("role"))) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role is None or not isinstance(text, str):
            raise InputError("has a turn that is not {'from': human, gpt or system, 'value': text}")
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


def _check_files(record: Record, checked: set[str]) -> None:
    """Open every file's header once; a picture that ends early is found when it is read."""
    for kind, paths in (("image", record.images), ("video", record.videos)):
        for path in paths:
            if path not in checked:
                _open_image(path) if kind == "image" else _open_video(path)
                checked.add(path)


def _open_image(path: str) -> None:
    from PIL import Image

    try:
        with Image.open(path):
            pass
    except FileNotFoundError:
        raise InputError(f"image {path} does not exist") from None
    except Exception as error:  # Pillow's readers raise what their formats suggest
        raise InputError(f"image {path} cannot be read") from error


def _open_video(path: str) -> None:
    import av

    if not Path(path).is_file():
        raise InputError(f"video {path} does not exist")
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise InputError(f"video {path} holds no video stream")
    except av.FFmpegError as error:
        raise InputError(f"video {path} cannot be decoded") from error
