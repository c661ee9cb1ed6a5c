"""Records in other programs' forms -> this package's form: `ppe-npu convert`.

The known forms are: messages (or conversations) with role and content or from and value, whose content is text or a
list of parts (OpenAI, TRL, ms-swift); images and videos beside them (LLaMA-Factory, ms-swift); query, response and
history (ms-swift); instruction, input and output (Alpaca); a system text at the top. A record in this package's form
stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppe_npu.data.messages import SETTINGS
from ppe_npu.data.places import Room
from ppe_npu.data.turns import PLACEHOLDERS
from ppe_npu.errors import InputError
from ppe_npu.files import write_text
from ppe_npu.training.record_files import read_file
from ppe_npu.training.record_form import check_record, check_repeated
from ppe_npu.training.record_keys import SYSTEMS
from ppe_npu.training.records import Fault
from ppe_npu.utils.escape import brief

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "model": "gpt", "system": "system",
          "developer": "system"}  # fmt: skip
_TURNS = ("conversations", "messages", "conversation", "message")
_ASKED, _ANSWER = ("query", "instruction", "instructions"), ("response", "output")
_PAIRS = (*_ASKED, *_ANSWER, "history", "input")
_FILES = {"image": ("image", "images"), "video": ("video", "videos")}
_NOTHING = (None, "", [], {})
_READ = {*_TURNS, *_PAIRS, *SYSTEMS, *(key for keys in _FILES.values() for key in keys)}
Turn = dict[str, str]


@dataclass(frozen=True)
class Converted:
    """Records in this package's form, and those that cannot be brought to it."""

    records: tuple[dict[str, Any], ...]
    faults: tuple[Fault, ...]


def convert_files(files: Sequence[str | Path]) -> Converted:
    """All records of files, in order.

    Raises:
        InputError: a file that cannot be read.
    """
    records, faults = [], []
    for file in map(Path, files):
        room = Room(file.parent, anywhere=True)  # `ppe-npu data` checks that files exist, and lie inside the folder
        for where, raw in read_file(file):
            try:
                if isinstance(raw, InputError):
                    raise raw
                record = convert_record(raw)
            except InputError as error:
                faults.append(Fault(where, str(raw.get("id", where)) if isinstance(raw, dict) else where, str(error)))
                continue
            checked = check_record(record, where, room)
            faults.append(checked) if isinstance(checked, Fault) else records.append(record)
    return Converted(tuple(records), tuple(faults))


def write_converted(found: Converted, output: str | Path) -> None:
    """Write one record per line; the file appears only when it is complete.

    Raises:
        InputError: a name that does not end in .jsonl.
    """
    if Path(output).suffix.lower() != ".jsonl":
        raise InputError(f"--output {output}: name a .jsonl file")
    write_text(output, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found.records))


def convert_record(raw: Any) -> dict[str, Any]:
    """One record as this package reads it; its other keys stay as they are.

    Raises:
        InputError: content that is ambiguous, or has no place in this form.
    """
    if not isinstance(raw, dict):
        raise InputError(f"is {brief(raw)}, not a record: write a JSON object")
    check_repeated(raw, "it")
    files: dict[str, list[str]] = {"image": [], "video": []}
    beside = {kind: _beside(raw, kind) for kind in _FILES}
    turns = _all_turns(raw, files, beside)
    for kind, left in beside.items():
        _place(turns, kind, files[kind], left)
    system = _one(raw, SYSTEMS) or None
    own = turns[0]["value"] if turns and turns[0]["from"] == "system" else None
    if None not in (system, own) and system != own:
        raise InputError("has a system text at the top and a different one in its turns: keep one of them")
    if system is not None and own is None:
        turns.insert(0, {"from": "system", "value": _text(system, "system")})
    rest = {key: value for key, value in raw.items() if key not in _READ}
    return {**rest, **{kind: named for kind, named in files.items() if named}, "conversations": turns}


def _all_turns(raw: Mapping[str, Any], files: dict[str, list[str]], beside: dict[str, list[str]]) -> list[Turn]:
    """The turns. Files named in their parts are added to `files`; files named beside them are taken from `beside`."""
    lists = {key: raw[key] for key in _TURNS if isinstance(raw.get(key), list)}  # other values are notes
    turns = _one(lists or raw, _TURNS)
    if turns:
        others = [key for key in _PAIRS if isinstance(raw.get(key), str | list) and raw[key] not in _NOTHING]
        if others:
            raise InputError(f"has both turns and {', '.join(others)}: keep one of them")
        if not isinstance(turns, list):
            raise InputError(f"its turns are {brief(turns)}: give a list")
        return [_turn(turn, files, beside) for turn in turns]
    history = raw.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise InputError("its history is not a list of [question, answer]: write it as one")
    asked, answer = _one(raw, _ASKED), _one(raw, _ANSWER)
    if asked is None or answer is None:
        found = ", ".join(map(brief, raw))
        raise InputError(f"has neither turns nor a question and its answer among its keys {found}: add one of them")
    more = raw.get("input") or ""
    pairs = [*history, ["\n".join(filter(None, (_text(asked, "question"), _text(more, "input")))), answer]]
    return [{"from": who, "value": _text(text, "text")} for pair in pairs for who, text in zip(("human", "gpt"), pair)]


def _one(raw: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value under one of several keys that mean the same; InputError if they have different values."""
    held = {key: raw[key] for key in keys if raw.get(key) not in _NOTHING}
    if any(value != next(iter(held.values())) for value in held.values()):
        raise InputError(f"has {' and '.join(held)}, which differ: keep one of them")
    return next((raw[key] for key in (*held, *keys) if raw.get(key) is not None), None)


def _turn(given: Any, files: dict[str, list[str]], beside: dict[str, list[str]]) -> Turn:
    if not isinstance(given, dict):
        raise InputError(f"has a turn that is {brief(given)}, not an object")
    check_repeated(given, "one of its turns")
    named = {
        key: _ROLES.get(said, said) if isinstance(said := given.get(key), str) else said for key in ("from", "role")
    }
    role, content = _one(named, ("from", "role")), _one(given, ("value", "content"))
    if role not in _ROLES.values():
        said = given.get("from", given.get("role"))
        raise InputError(f"has a turn of {brief(said)}: leave the record out; training on tools is not supported")
    more = {key: value for key, value in given.items() if key not in ("from", "role", "value", "content")}
    more = {key: value for key, value in more.items() if value not in _NOTHING}
    if isinstance(content, list):
        content = "".join(_part(part, files, beside) for part in content)
    return {**more, "from": role, "value": _text(content, "turn")}


def _part(given: Any, files: dict[str, list[str]], beside: dict[str, list[str]]) -> str:
    """A part of a content list as text; for a file it is a placeholder, and the file is added to `files`."""
    if isinstance(given, str):
        return _literal(given)
    if isinstance(given, dict):
        check_repeated(given, "a part of a turn")
    kind = given.get("type") if isinstance(given, dict) else None
    name = kind.removesuffix("_url") if isinstance(kind, str) else ""
    if name not in (*files, "text"):
        raise InputError(f"has a part of type {brief(kind)}: use text, image or video")
    strange = {"text", "image", "image_url", "video", "video_url"} - {name, kind, f"{name}_url"}
    lost = [key for key in (*SETTINGS.get(name, ()), *sorted(strange)) if given.get(key) not in _NOTHING]
    if lost:
        raise InputError(f"has {lost[0]} in a part of type {brief(kind)}, which is not read there: leave it out")
    if name == "text":
        return _literal(_text(given.get("text"), "part"))
    source = _one(given, tuple(dict.fromkeys((name, f"{name}_url", "path", "url")))) or None
    if source is None:  # as in TRL's form: the file is named beside the turns
        if not beside[name]:
            raise InputError(f"has a part of type {name!r} without a file: name one")
        source = beside[name].pop(0)
    files[name].append(_path(source, name))
    return PLACEHOLDERS[name]


def _literal(text: str) -> str:
    for token in PLACEHOLDERS.values():
        if token in text:
            raise InputError(f"has {token} in a part of type 'text': name its file in a part of its own")
    return text


def _beside(raw: Mapping[str, Any], kind: str) -> list[str]:
    values = [raw[key] for key in _FILES[kind] if raw.get(key)]
    if len(values) > 1:
        raise InputError(f"has {' and '.join(_FILES[kind])}: keep one of them")
    value = values[0] if values else []
    return [_path(item, kind) for item in (value if isinstance(value, list) else [value])]


def _path(given: Any, kind: str) -> str:
    """A file's path; in a mapping it is under "url" or "path"."""
    what = f"{'an' if kind == 'image' else 'a'} {kind}"
    if isinstance(given, dict):
        check_repeated(given, f"the name of {what}")
        if given.get("bytes"):
            raise InputError(f"has {kind} bytes in it: write them to a file, and name that file")
        given = given.get("path") or given.get("url")
    if not isinstance(given, str) or not given:
        raise InputError(f"has {brief(given)} where the path of {what} belongs")
    return given


def _place(turns: Sequence[Turn], kind: str, files: list[str], left: list[str]) -> None:
    """Add the files named beside the turns. If the turns have no placeholders, put them before the first question."""
    token = PLACEHOLDERS[kind]
    held = any(token in turn["value"] for turn in turns if turn["from"] == "human")
    first = next((turn for turn in turns if turn["from"] == "human"), None)
    if left and files:
        raise InputError(f"names {kind}s both in its parts and beside its turns: keep one of them")
    if left and not held and first is not None:
        first["value"] = token * len(left) + "\n" + first["value"]
    files += left


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"has a {what} that is {brief(value)}, not a string")
    return value
