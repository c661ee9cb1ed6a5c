"""Finds what another program would read as a picture or a video in a record's texts and notes. This package would
ignore it, and train a model on text without its pictures, so it is an InputError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.training.record_forms import FILM, FILM_BYTES, MORE_BYTES, PICTURE, PICTURE_BYTES, find_place
from ppe_npu.utils.escape import brief

IMAGE = "name it 'image' (a path or a list of paths), with one <image> for each in the human turns"
VIDEO = "name it 'video' (a path or a list of paths), with one <video> for each in the human turns"

_FILE = re.compile(rf"[^\n]{{1,500}}\.(?:({PICTURE})|{FILM})", re.IGNORECASE)
_ASKED = re.compile(r"(?<=\w)[?#]\S{0,2000}$")  # after a file's name in an address: ".../a.png?size=9"
# A file's content as text: a data URL, or base64.
_INLINE = re.compile(rf"\s*(?:data:(image)/|data:video/|(?:({PICTURE_BYTES})|{FILM_BYTES}){MORE_BYTES})")
_NAMES = re.compile("(?!vid$).*id|from|role", re.IGNORECASE)  # keys whose values are no files, whatever they look like
_DEPTH = 4  # levels of lists and objects that are searched for a file's name

# What the chat templates of Qwen's models write for a picture.
_TEMPLATES = re.compile(r"<\|(?:vision_start|vision_end|vision_pad|image_pad|video_pad)\|>")
_MARK = re.compile(r"(?!<image>|<video>)<[^<>\s]{1,40}>")


def check_unseen(raw: Mapping[str, Any]) -> None:
    """Raise InputError if a record without visuals names some elsewhere: a note at the top or in a turn has a file's
    name in it, or a human turn has what another program reads as a picture or a video."""
    turns = (("a turn's", turn, ("value", "content")) for turn in raw["conversations"])
    for whose, said, read in (("its", raw, ("conversations",)), *turns):
        for key, value in said.items():
            if key in read or _NAMES.fullmatch(key):
                continue
            file = _file_in(value, _DEPTH)
            if file is not None:
                inline, where = _INLINE.match(file), f"{whose} key {brief(key)}"
                held = "contains a file as text" if inline else f"names {brief(file)}"
                picture = any(inline.groups()) if inline else _FILE.fullmatch(_name(file))[1]
                remedy = ("save it as a file, and " if inline else "") + (IMAGE if picture else VIDEO)
                raise InputError(f"{where} {held}, which the model would not see: {remedy}; or leave it out")
    check_places(raw, 0)


def check_places(raw: Mapping[str, Any], own: int) -> None:
    """Raise InputError if a human turn has what another program reads as a picture or video, besides the `own` visuals
    that the record names in its keys. If there are such visuals, a file's name alone does not count, because it most
    likely names one of them; and if there are two, <image_2> is the second."""
    for turn in () if raw.get("literal") else raw["conversations"]:
        if turn.get("from", turn.get("role")) not in ("human", "user"):
            continue
        place = find_place(turn.get("value", turn.get("content")), own)
        if place is not None:
            remedy = "write <image> or <video>, and name the files under 'image' or 'video'; or, if the text itself "
            remedy += "is meant, give the record 'literal': true"
            raise InputError(f"a text in it has {brief(place)}, for which the model would see nothing: {remedy}")


def check_text(text: str) -> None:
    """Raise InputError if a text holds what the chat template itself writes for a picture."""
    if found := _TEMPLATES.search(text):
        raise InputError(
            f"a text in it has {found[0]}, which the chat template writes itself: write <image> or <video>"
        )


def check_marks(raw: Mapping[str, Any]) -> None:
    """Raise InputError for a note that says what a mark in the record's texts stands for (VTimeLLM's times for <s0>,
    ms-swift's boxes for <bbox>): the model would learn the mark itself."""
    texts = [turn.get("value", turn.get("content")) for turn in raw["conversations"]]
    for key, value in raw.items():
        held = _marks(value, _DEPTH) if key != "conversations" else ()
        if key == "objects" and isinstance(value, Mapping):
            held = (*held, *(mark for mark, name in (("<bbox>", "bbox"), ("<ref-object>", "ref")) if value.get(name)))
        mark = next((mark for mark in held if any(mark in text for text in texts)), None)
        if mark is not None:
            told = f"its key {brief(key)} says what {brief(mark)} in its texts stands for, but is not read"
            raise InputError(f"{told}: write the meaning itself into the texts")


def _marks(value: Any, depth: int) -> Iterator[str]:
    """The keys of objects in a value that look like marks: "<s0>"."""
    if isinstance(value, Mapping) and depth:
        for key, item in value.items():
            if _MARK.fullmatch(key):
                yield key
            yield from _marks(item, depth - 1)


def _file_in(value: Any, depth: int) -> str | None:
    """The first name of a picture or video file in a value, or the first such file given as text; None if none is."""
    if isinstance(value, str):
        return value if _INLINE.match(value) or _FILE.fullmatch(_name(value)) else None
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((file for item in inner if (file := _file_in(item, depth - 1))), None) if depth else None


def _name(value: str) -> str:
    """An address without its query and fragment; any other text as it is."""
    return _ASKED.sub("", value) if "://" in value[:20] else value
