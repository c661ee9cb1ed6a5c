"""The keys of a record. One that another program reads, or that is misspelt, is named: what stands under it would be
left out without a word, and a model trained on text without its pictures."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.utils.escape import brief

_HELD = ("image", "video", "conversations", "independent")
_KEYS = (*_HELD, "literal")  # which "lateral" and "interval", keys of others, are near to
_IMAGE = "name it 'image' (a path or a list of paths), with one <image> for each in the human turns"
_VIDEO = "name it 'video' (a path or a list of paths), with one <video> for each in the human turns"
_TURNS = "write 'conversations', a list of {'from': human or gpt, 'value': text}"
_SYSTEM = "make it the first of the conversations, {'from': 'system', 'value': text}"
_ONE_ANSWER = "write the wanted answer into 'conversations', where gpt says it; there is no training on preferences"
_NONE = "leave it out; there is no training on"


def _each(names: str, remedy: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), remedy)


# Keys of other programs' forms: LLaMA-Factory, ms-swift, TRL, ShareGPT, Alpaca, OpenAI's messages.
_FOREIGN = {
    **_each("images", _IMAGE),
    **_each("videos", _VIDEO),
    **_each("messages message conversation query response history instruction instructions input output", _TURNS),
    **_each("system system_prompt system_message", _SYSTEM),
    **_each("tools functions tool_calls", f"{_NONE} tools"),
    **_each("audio audios", f"{_NONE} sound"),
    **_each("chosen rejected rejected_response rejected_messages", _ONE_ANSWER),
}
_CONVERT = "; `ppe-npu convert` writes such records so"
_CONVERTED = {"images", "videos", "messages", "message", "conversation", "query", "response", "history", "instruction",
              "instructions", "input", "output", "system", "system_prompt", "system_message"}  # fmt: skip
# These are often notes beside a record that has the right key, so they are named where it is missing.
_INSTEAD = {
    "image": _each(
        "img imgs image_path image_paths image_file image_files image_url image_urls img_path picture pictures "
        "image_list",
        _IMAGE,
    ),
    "video": _each("video_path video_paths video_file video_url video_urls clip clips vids video_list", _VIDEO),
    "conversations": _each(
        "prompt completion question answer answers text caption dialog dialogue dialogs chat turns qa", _TURNS
    ),
}
_OF_TURNS = {
    **_each("image images", "name it at the top, beside the conversations, as 'image'"),
    **_each("video videos", "name it at the top, beside the conversations, as 'video'"),
    **_each("tool_calls function_call tools", f"{_NONE} tools"),
    **_each("audio audios", f"{_NONE} sound"),
    **_each("reasoning_content reasoning thinking thought", "write it into the answer, where gpt says it"),
}
_WEIGHTS = ("loss", "weight", "train", "loss_mask", "mask")  # of a turn: whether it counts
_PICTURE = r"jpe?g|png|webp|gif|bmp|tiff?|avif|jp2|heic"
_FILM = r"mp4|m4v|mkv|webm|avi|mov|flv|wmv|mpe?g|ts"
_FILE = re.compile(rf"[^\n]{{1,500}}\.(?:({_PICTURE})|{_FILM})", re.IGNORECASE)
_ASKED = re.compile(r"(?<=\w)[?#]\S*$")  # behind a file's name in an address: ".../a.png?size=9"
# A file itself: an address of data, or how base64 of PNG, JPEG, GIF, WebP, MP4 and Matroska begins.
_INLINE = re.compile(
    r"\s*(?:data:(image)/|data:video/|(?:(iVBORw0KGgo|/9j/|R0lGOD|UklGR)|AAAA..Z0eX|GkXfo)[A-Za-z0-9+/\r\n]{16})"
)
_NAMES = re.compile("(?!vid$).*id|from|role", re.IGNORECASE)  # keys of what is no file, whatever it looks like
_DEPTH = 4  # of lists and objects in which a file's name is looked for
# What the model's own template writes for a picture, and what stands for one in other programs' texts.
_TEMPLATES = re.compile(r"<\|(?:vision_start|vision_end|image_pad|video_pad)\|>")
_PLACES = re.compile(
    r"<img>[^<\n]*</img>|\[(?:IMG|IMAGE|VIDEO)\]|<(?:IMG_CONTEXT|__media__|\|img\|)>|<\|?(?:start_of_)?(?:image|video)"
    r"(?:[ _-]?(?:\d+|token|soft_token|pad|placeholder|context|here))?\s*/?\|?>",
    re.IGNORECASE,
)
_TAGS = re.compile(rf"<(img|vid)>\s*[^<\s][^<\n]*?\.(?:{_PICTURE}|{_FILM})(?:[?#][^<\s]*)?\s*</\1>", re.IGNORECASE)
_CLOSE = 0.8  # of difflib; "imgae" and "image" have 0.8, "image_id" and "image" 0.77


def check_keys(raw: Mapping[str, Any]) -> None:
    """Raise InputError for a key at the top of a record under which something stands that nothing would read."""
    for key, value in raw.items():
        if key in _KEYS or _empty(value):
            continue
        remedy = _remedy(key)
        instead = (ours for ours, names in _INSTEAD.items() if _plain(key) in names and _empty(raw.get(ours)))
        ours = next(instead, None)
        if remedy is None and ours is not None:
            remedy = _INSTEAD[ours][_plain(key)]
        if remedy is not None:
            raise InputError(f"its key {brief(key)} is not read: {remedy}")


def check_turn_keys(turn: Mapping[str, Any]) -> None:
    """Raise InputError for a key of a turn under which something stands that nothing would read."""
    for key, value in turn.items():
        name = _plain(key)
        if name in _OF_TURNS and not _empty(value):
            raise InputError(f"a turn's key {brief(key)} is not read: {_OF_TURNS[name]}")
        if name in _WEIGHTS and value is not None and value not in (True, 1):
            raise InputError(f"a turn's key {brief(key)} is not read: leave it out; all that gpt says has a loss of 1")


def check_unseen(raw: Mapping[str, Any]) -> None:
    """Raise InputError for a record without visuals that names some: a note with a file's name in it, at the top or in
    a turn, or another program's placeholder in a human turn."""
    turns = (("a turn's", turn, ("value", "content")) for turn in raw["conversations"])
    for whose, said, read in (("its", raw, ("conversations",)), *turns):
        for key, value in said.items():
            if key in read or _NAMES.fullmatch(key):
                continue
            file = _file_in(value, _DEPTH)
            if file is not None:
                inline, where = _INLINE.match(file), f"{whose} key {brief(key)}"
                held = "holds a file as text" if inline else f"names {brief(file)}"
                picture = any(inline.groups()) if inline else _FILE.fullmatch(_name(file))[1]
                remedy = ("save it as a file, and " if inline else "") + (_IMAGE if picture else _VIDEO)
                raise InputError(f"{where} {held}, which the model would not see: {remedy}; or leave it out")
    _check_asked(raw, _PLACES)


def check_tags(raw: Mapping[str, Any]) -> None:
    """Raise InputError for a file that a human turn names in a tag, beside those that the record names in its keys."""
    _check_asked(raw, _TAGS)


def _check_asked(raw: Mapping[str, Any], places: re.Pattern[str]) -> None:
    """Raise InputError for something in a human turn that another program would put a picture or a video in place
    of, unless the record says that it is literal."""
    for turn in () if raw.get("literal") else raw["conversations"]:
        place = places.search(turn.get("value", turn.get("content")))
        if place and turn.get("from", turn.get("role")) in ("human", "user"):
            remedy = "write <image> or <video>, and name the files under 'image' or 'video'; or, where the text itself "
            remedy += "is meant, give the record 'literal': true"
            raise InputError(f"a text in it has {brief(place[0])}, which nothing stands for: {remedy}")


def check_text(text: str) -> None:
    """Raise InputError for a text that holds what the chat template itself writes for a picture."""
    if found := _TEMPLATES.search(text):
        raise InputError(
            f"a text in it has {found[0]}, which the chat template writes itself: write <image> or <video>"
        )


def _file_in(value: Any, depth: int) -> str | None:
    """The first name of a picture's or a video's file in a value, or the file itself as text."""
    if isinstance(value, str):
        return value if _INLINE.match(value) or _FILE.fullmatch(_name(value)) else None
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((file for item in inner if (file := _file_in(item, depth - 1))), None) if depth else None


def _name(value: str) -> str:
    """An address without what is asked of it; any other text as it is."""
    return _ASKED.sub("", value) if "://" in value[:20] else value


def named(keys: Iterable[str]) -> str:
    """The first keys of something, for a message."""
    found = list(keys)
    return ", ".join(brief(key, 20) for key in found[:4]) + (", ..." if len(found) > 4 else "") or "no keys"


@lru_cache(4096)
def _remedy(key: str) -> str | None:
    name = _plain(key)
    if name in _FOREIGN:
        return _FOREIGN[name] + (_CONVERT if name in _CONVERTED else "")
    ours = _misspelt(key)
    return None if ours is None else f"did you mean {ours!r}?"


def _misspelt(key: str) -> str | None:
    """The key of ours that this one was probably meant to be. An id, a size of a picture and the like are notes."""
    if len(key) > 40:
        return None
    words = _plain(key)
    if re.fullmatch(f"({'|'.join(key.removesuffix('s') for key in _KEYS)})s?([_.][a-z]+)+|[a-z]+ids?", words):
        return None
    return next(iter(difflib.get_close_matches(words.strip("_.:"), _HELD, 1, _CLOSE)), None)


def _plain(key: str) -> str:
    """A key as this module's tables have it: imageUrls, Image-URLs and image_urls are one."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", key.strip()).lower().replace("-", "_").replace(" ", "_")


def _empty(value: Any) -> bool:
    """Whether nothing stands there; some programs write every key into every record."""
    return (
        value is None or value is False or (isinstance(value, (str, list, dict)) and len(value) == 0) or value == "[]"
    )
