"""The structure of messages, checked before anything is read: every form that transformers' apply_chat_template takes
is brought to one form, and anything else raises an InputError that names the message, the part and the key."""

from __future__ import annotations

import base64
import binascii
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ppe_npu.data.colours import check_dense
from ppe_npu.data.videos import Video, VideoFrame
from ppe_npu.errors import InputError

_SOURCES = {
    "image": ("image", "image_url", "url", "path", "base64"),
    "video": ("video", "video_url", "url", "path"),
}
_KINDS = {"text": "text", "image": "image", "image_url": "image", "video": "video", "video_url": "video"}
# Keys that other programs read beside a picture or video. They are refused: ignoring them would silently change what
# the model sees.
SETTINGS = {
    "image": ("min_pixels", "max_pixels", "resized_height", "resized_width"),
    "video": (
        "min_pixels", "max_pixels", "resized_height", "resized_width", "total_pixels", "fps", "nframes", "num_frames",
        "min_frames", "max_frames", "video_start", "video_end", "sample_fps", "raw_fps",
    ),
}  # fmt: skip
_WHERE_SET = {
    "image": "load_processor(min_pixels=..., max_pixels=...) sets the size of all pictures",
    "video": "build_inputs(sampling=VideoSampling(...)) says which frames are taken, and their size",
}
_PICTURE = "give a path, bytes, a Pillow picture, an array or a tensor"
_VIDEO = "give a path, a list of frames, or an array or tensor [T, 3, H, W]"
_WRITTEN_OUT = re.compile("data:image/[^,]*,")  # a picture in a data URL, as OpenAI's clients send it
# The first bytes of picture files; and the 32 base64 characters that are searched for them: fewer may be a file name.
_BEGIN = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|RIFF....WEBP|BM|II\*\0|MM\0\*|P[1-6]\s|....ftyp(?:avi|mif)|\0\0\0\x0cjP|\xff\x4f\xff\x51",
    re.DOTALL,
)
_BARE = re.compile(r"\s*([A-Za-z0-9+/]{32})")
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple = 2, 3, 3, 3
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 60, 60, 40

Message = dict[str, Any]


def check_conversations(given: Any) -> list[list[Message]]:
    """One conversation or a batch of them -> a batch, every message in one form.

    A message is {"role": text, "content": text or a list of parts, ...}: other keys go to the chat template as they
    are. A part is returned as {"type": "text", "text": text}, {"type": "image", "image": what load_image takes} or
    {"type": "video", "video": path, Video, list of frames, array or tensor}. It may be given without a type, with its
    source under "path", "url" or (for a picture) "base64", or as {"type": "image_url", "image_url": {"url": path}};
    keys whose value is None count as absent.

    Raises:
        InputError: another structure, an unknown type, no or several sources, or settings that are not read here.
    """
    rows = _listed(given)
    if rows is None:
        raise InputError(
            f"conversations are {worded(given)}, not a list: give [[{{'role': 'user', 'content': 'Hello'}}, ...], ...]"
        )
    if not rows:
        raise InputError("no conversation was given: give at least one")
    if isinstance(rows[0], Mapping):
        return [_conversation(rows, "")]
    return [_conversation(row, f"conversation {number}, ") for number, row in enumerate(rows, 1)]


def worded(value: Any) -> str:
    """A value as error messages show it: on one line, cut short."""
    if isinstance(value, torch.Tensor) and value.is_nested:
        return "a nested Tensor"  # which has no shape
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} of shape {list(value.shape)}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{type(value).__name__} of length {len(value):,}"
    if isinstance(value, (Image.Image, Video, VideoFrame)):
        return f"a {type(value).__name__}"
    try:
        text = " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        text = f"a {type(value).__name__}"
    return text if text.isprintable() else ascii(text)[1:-1]


def _listed(value: Any) -> list | None:
    """A list, a tuple or an array of objects (as in parquet rows) as a list; None for anything else."""
    rows = isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1
    return list(value) if rows or isinstance(value, (list, tuple)) else None


def _conversation(given: Any, where: str) -> list[Message]:
    messages = _listed(given)
    name = where.removesuffix(", ") or "the conversation"
    if messages is None:
        raise InputError(f"{name} is {worded(given)}: give a list of messages")
    if not messages:
        raise InputError(f"{name} contains no message: give at least one")
    return [_message(message, f"{where}message {number}") for number, message in enumerate(messages, 1)]


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, Mapping):
        raise InputError(f"{where} is {worded(given)}: give {{'role': 'user', 'content': ...}}")
    for key in given:
        if not isinstance(key, str):
            raise InputError(f"{where} has the key {worded(key)}: keys must be strings")
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or not role.strip():
        raise InputError(f"{where} has role {worded(role)}: use system, user or assistant")
    _check_text(role, f"{where}, role")
    if content is None and given.get("tool_calls"):
        content = ""
    parts = _listed(content)
    if isinstance(content, str):
        _check_text(content, f"{where}, content")
    elif parts is None:
        held = "" if content is not None else f" among its keys {worded(sorted(given))}"
        raise InputError(f"{where} has content {worded(content)}{held}: give a string or a list of parts")
    else:
        content = [_part(part, f"{where}, part {number}") for number, part in enumerate(parts, 1)]
    return {**given, "role": role, "content": content}


def _part(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(
            f"{where} is {worded(given)}: give {{'type': 'text', 'text': ...}} or a part with an image or video"
        )
    held = {key: value for key, value in given.items() if value is not None}
    kind = _kind(held, where)
    if kind == "text":
        text = held.get("text")
        if not isinstance(text, str):
            raise InputError(f"{where} of type text has text {worded(text)}: give a string")
        _check_text(text, f"{where}, text")
        _check_alone(held, kind, where)
        return {"type": "text", "text": text}
    sources = [key for key in _SOURCES[kind] if key in held and not (isinstance(held[key], str) and not held[key])]
    if not sources:
        raise InputError(f"{where} of type {kind} names no {kind}: add {kind!r}: its path")
    if len(sources) > 1:
        raise InputError(f"{where} names its {kind} by {' and by '.join(sources)}: give one of them")
    _check_alone(held, kind, where)
    value, where = _source(held[sources[0]], sources[0], f"{where}, {sources[0]}")
    return {"type": kind, kind: (_picture if kind == "image" else _video)(value, where)}


def _kind(held: Mapping[Any, Any], where: str) -> str:
    """text, image or video: by the part's type, or by its keys if it has no type."""
    said = held.get("type")
    if said is None:
        kinds = list(dict.fromkeys(_KINDS[key] for key in _KINDS if key in held))
        if len(kinds) != 1:
            raise InputError(f"{where} has no type: add 'type': text, image or video to {worded(dict(held))}")
        return kinds[0]
    if not isinstance(said, str) or said not in _KINDS:
        raise InputError(f"{where} has type {worded(said)}: use text, image or video")
    return _KINDS[said]


def _check_alone(held: Mapping[Any, Any], kind: str, where: str) -> None:
    """Raise InputError for content of a part that its type does not cover, because it would be lost."""
    own = _SOURCES.get(kind, ("text",))
    others = {"text", *_SOURCES["image"], *_SOURCES["video"]}.difference(own)
    for key in sorted(others.intersection(key for key in held if isinstance(key, str))):
        if not (isinstance(held[key], str) and not held[key]):
            raise InputError(f"{where} of type {kind} also has {key} {worded(held[key])}: make two parts of it")
    for key in SETTINGS.get(kind, ()):
        if key in held:
            raise InputError(f"{where} has {key} {worded(held[key])}, which is not read here: {_WHERE_SET[kind]}")


def _source(value: Any, key: str, where: str) -> tuple[Any, str]:
    """(the picture or video itself, its name in messages)."""
    if key.endswith("_url") and isinstance(value, Mapping):
        value, where = value.get("url"), f"{where}.url"
    return (_decoded(value, where) if key == "base64" else value), where


def _decoded(value: Any, where: str) -> bytes:
    """The bytes of a file that is given as base64."""
    try:
        text = "".join(value.split())
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (AttributeError, binascii.Error, ValueError) as error:
        raise InputError(f"{where} is {worded(value)}, not base64: give the file's path or its bytes") from error


def _is_base64(text: str) -> bool:
    """Whether a text is no existing path and begins like a picture in base64, a form that transformers takes, too."""
    found = _BARE.match(text)
    return bool(found and _BEGIN.match(base64.b64decode(found[1])) and not os.path.exists(text))


def _picture(value: Any, where: str) -> Any:
    """A picture, or one frame of a list of frames, as load_image takes it."""
    if isinstance(value, str) and (_WRITTEN_OUT.match(value) or _is_base64(value)):
        return _decoded(value, where)
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, Image.Image, VideoFrame, np.ndarray, torch.Tensor)
    if not isinstance(value, kinds) and not hasattr(value, "read"):
        raise InputError(f"{where} is {worded(value)}: {_PICTURE}")
    check_dense(value, where)
    return value


def _video(value: Any, where: str) -> Any:
    check_dense(value, where)
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 4 and len(value):
        return value
    if frames := _listed(value):
        return [_picture(frame, f"{where}, frame {number}") for number, frame in enumerate(frames, 1)]
    if not isinstance(value, (str, os.PathLike, Video)):
        raise InputError(f"{where} is {worded(value)}: {_VIDEO}")
    return value


def _check_text(text: str, where: str) -> None:
    if has_surrogates(text):
        raise InputError(f"{where} is not valid Unicode: remove the lone half of a surrogate pair from {worded(text)}")


def has_surrogates(text: str) -> bool:
    """Whether a text holds half of a surrogate pair alone, which no tokenizer accepts."""
    return not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text)


def visual_items(messages: Sequence[Message]) -> dict[str, list[Any]]:
    """The images and videos of a checked conversation, in order: {"image": [...], "video": [...]}."""
    found: dict[str, list[Any]] = {"image": [], "video": []}
    for message in messages:
        for part in () if isinstance(message["content"], str) else message["content"]:
            if part["type"] != "text":
                found[part["type"]].append(part[part["type"]])
    return found
