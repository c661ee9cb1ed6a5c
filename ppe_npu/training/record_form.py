"""Raw records -> Records, or Faults that say why they cannot be used. The files that they name are not opened here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppe_npu.data.messages import has_surrogates
from ppe_npu.data.places import Room
from ppe_npu.data.turns import PLACEHOLDERS
from ppe_npu.errors import InputError, counted
from ppe_npu.training.record_files import Repeated
from ppe_npu.training.record_keys import check_keys, check_turn_keys, named
from ppe_npu.training.record_places import check_marks, check_places, check_text, check_unseen
from ppe_npu.training.records import Fault, Record
from ppe_npu.utils.escape import brief

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_FORM = "{'from': human, gpt or system, 'value': text}"
_TURN = f"write {_FORM}"


def check_record(raw: Any, where: str, room: Room) -> Record | Fault:
    """A raw record as a Record, or a Fault that says what is wrong with it.

    Args:
        raw: the parsed record; an InputError if it is no JSON.
        where: file and line.
        room: the folder that its paths start from and must stay in.
    """
    id_ = _id(raw, where)
    try:
        if isinstance(raw, InputError):
            raise raw
        if not isinstance(raw, dict):
            raise InputError(f"is {brief(raw)}, not a record: write an object with conversations")
        return Record(where, *_parts(raw, room), id=_unicode(id_, "its id"))
    except InputError as error:
        return Fault(where, id_, str(error))


def _id(raw: Any, where: str) -> str:
    value = raw.get("id") if isinstance(raw, dict) else None
    return str(value) if isinstance(value, (str, int)) and value != "" else where


def _parts(
    raw: dict[str, Any], room: Room
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, str], ...], bool]:
    """A raw record's images, videos, turns, and whether it is independent; InputError says what is wrong."""
    check_repeated(raw, "it")
    check_keys(raw)
    images, videos = _paths(raw, "image", room), _paths(raw, "video", room)
    turns = _check_turns(raw)
    for kind, given in (("image", images), ("video", videos)):
        held = sum(text.count(PLACEHOLDERS[kind]) for _, text in turns)
        if held != len(given):
            token, files = PLACEHOLDERS[kind], counted(len(given), kind)
            raise InputError(f"has {held} {token} for {files} in its human turns: write one {token} per {kind}")
    independent, _ = (_flag(raw, key) for key in ("independent", "literal"))
    check_places(raw, len(images) + len(videos)) if images or videos else check_unseen(raw)
    check_marks(raw)
    if independent:
        _check_independent(turns, len(images) + len(videos))
    return images, videos, turns, independent


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key)
    if value in (None, ""):  # some programs write every key into every record
        return False
    if not isinstance(value, bool):
        raise InputError(f"{key} is {brief(value)}: use true or false")
    return value


def check_repeated(value: Any, what: str) -> None:
    """Raise InputError if an object has a key twice."""
    if isinstance(value, Repeated):
        raise InputError(f"{what} has the key {brief(value.key)} twice: keep one of them")


def _unicode(text: str, what: str) -> str:
    if has_surrogates(text):
        raise InputError(f"{what} is not valid Unicode: remove the lone half of a surrogate pair")
    return text


def _paths(raw: Mapping[str, Any], key: str, room: Room) -> tuple[str, ...]:
    value = raw.get(key)
    values = [] if value is None or value == "" else [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise InputError(f"{key} is {brief(value)}: give a path or a list of paths")
    wrong = next((item for item in values if not isinstance(item, str) or not item), None)
    if wrong is not None or None in values:
        raise InputError(f"{key} is a list with {brief(wrong)} in it: give a path or a list of paths")
    return tuple(room.path(_unicode(item, f"{key} {brief(item)}"), key) for item in values)


# -- turns -------------------------------------------------------------------------------------------------------------


def _check_turns(raw: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    conversations = raw.get("conversations")
    if conversations is None or conversations == []:
        raise InputError(f"has no conversations: give a list of {_FORM}")
    if not isinstance(conversations, list):
        raise InputError(f"conversations is {brief(conversations)}: give a list of {_FORM}")
    turns = [_check_turn(turn) for turn in conversations]
    spoken = turns[1:] if turns[0][0] == "system" else turns
    if not spoken or [role for role, _ in spoken] != ["user", "assistant"] * (len(spoken) // 2):
        raise InputError("its turns do not alternate between human and gpt: start with human, and end with gpt")
    if any(token in text for role, text in turns if role != "user" for token in PLACEHOLDERS.values()):
        raise InputError("has <image> or <video> outside its human turns: move it into one of them")
    if not all(text.strip() for role, text in spoken if role == "assistant"):
        raise InputError("has an empty answer: write one, or leave the record out")
    return tuple(turns)


def _check_turn(turn: Any) -> tuple[str, str]:
    """(role, text) of a raw turn."""
    if not isinstance(turn, dict):
        raise InputError(f"has a turn that is {brief(turn)}, not an object: {_TURN}")
    check_repeated(turn, "one of its turns")
    said, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if said is None or text is None:
        raise InputError(f"has an incomplete turn, with the keys {named(turn)}: {_TURN}")
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise InputError(f"has a turn of {brief(said)}, not of human, gpt or system: {_TURN}")
    if not isinstance(text, str):
        remedy = f"{_TURN}, with <image> where a picture belongs; `ppe-npu convert` converts content lists to that form"
        raise InputError(f"has a turn whose value is {brief(text)}, not a string: {remedy}")
    for ours, theirs, other in (("from", "role", _ROLES.get(str(turn.get("role")))), ("value", "content", None)):
        if turn.get(theirs) not in (None, "", turn.get(ours, turn.get(theirs))) and (other is None or other != role):
            raise InputError(f"has a turn with {ours!r} and {theirs!r}, which differ: keep one of them")
    check_text(text)
    check_turn_keys(turn, role)
    return role, _unicode(text, "a text in it")


def _check_independent(turns: Sequence[tuple[str, str]], visuals: int) -> None:
    """Raise InputError unless the visuals open the first human turn, and so are one common prefix of all questions."""
    if turns[0][0] == "system":
        raise InputError("an independent record cannot have a system turn: leave it out")
    if not visuals:
        raise InputError("an independent record needs an image or a video that its questions share")
    text = turns[0][1]
    for _ in range(visuals):
        text = text.lstrip("\n")
        token = next((token for token in PLACEHOLDERS.values() if text.startswith(token)), None)
        if token is None:
            raise InputError("an independent record's placeholders must open its first human turn")
        text = text.removeprefix(token)
