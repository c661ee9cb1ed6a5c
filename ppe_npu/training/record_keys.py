"""The keys of a record. A key that only other programs read, or that is misspelt, is an InputError: its value would be
ignored silently, and a model trained on text without its pictures."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from ppe_npu.data.messages import SETTINGS
from ppe_npu.errors import InputError
from ppe_npu.training.record_places import IMAGE, VIDEO
from ppe_npu.utils.escape import brief

SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction", "sys", "sysprompt", "sys_prompt")
_HELD = ("image", "video", "conversations", "independent")
_KEYS = (*_HELD, "literal")  # the last is not in _HELD: "lateral" and "interval", keys of other programs, are like it
_TURNS = "write 'conversations', a list of {'from': human or gpt, 'value': text}"
_SYSTEM = "make it the first of the conversations, {'from': 'system', 'value': text}"
_ONE_ANSWER = "write the wanted answer into 'conversations', as gpt's; training on preferences is not supported"
_WANTED = "leave out the key, and records whose answer is not wanted; training on preferences is not supported"
_NO_TOOLS = "leave it out; training on tools is not supported"
_NO_SOUND = "leave it out; training on sound is not supported"
_NOTE = "if it is a note, rename the key"


def _each(names: str, remedy: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), remedy)


# Keys of other programs' forms: LLaMA-Factory, ms-swift, TRL, ShareGPT, Alpaca, OpenAI's messages.
_FOREIGN = {
    **_each("images", IMAGE),
    **_each("videos", VIDEO),
    **_each("messages message conversation query response history instruction instructions input output", _TURNS),
    **dict.fromkeys((*SYSTEMS, "developer", "developer_message"), _SYSTEM),
    **_each("tools functions tool_calls", _NO_TOOLS),
    **_each("audio audios", _NO_SOUND),
    **_each("chosen rejected chosen_response rejected_response rejected_responses rejected_messages", _ONE_ANSWER),
    **_each("rejected_images rejected_videos preferred_output non_preferred_output", _ONE_ANSWER),
}
_CONVERT = "; `ppe-npu convert` does that"
_CONVERTED = {"images", "videos", "messages", "message", "conversation", "query", "response", "history", "instruction",
              "instructions", "input", "output", *SYSTEMS}  # fmt: skip
_JUDGED = ("label", "desirable", "is_desirable")  # KTO's if they are true or false, else notes
# Keys that are often notes if the record has the right key; they are refused only if that is missing.
_INSTEAD = {
    "image": _each(
        "img imgs image_path image_paths image_file image_files image_url image_urls img_path picture pictures "
        "image_list",
        IMAGE,
    ),
    "video": _each("video_path video_paths video_file video_url video_urls clip clips vids video_list", VIDEO),
    "conversations": _each(
        "prompt completion question answer answers text caption dialog dialogue dialogs chat turns qa", _TURNS
    ),
}
_OF_TURNS = {
    **_each("image images", "name it at the top, beside the conversations, as 'image'"),
    **_each("video videos", "name it at the top, beside the conversations, as 'video'"),
    **_each("tool_calls function_call tools", _NO_TOOLS),
    **_each("audio audios", _NO_SOUND),
    **_each("reasoning_content reasoning thinking thought", "write it into the answer of gpt"),
}
_LOSS = "leave it out; every answer of gpt has a loss weight of 1"
# Keys for which a turn counts in the loss, and for which it does not; `mask` means either, depending on the program.
_COUNTS = _each(
    "loss weight train training loss_mask loss_scale loss_weight train_on_turn train_turn train_on trainable "
    "is_trainable train_on_output train_on_outputs",
    _LOSS,
)
_LEFT_OUT = _each(
    "is_masked masked mask_loss loss_masked no_loss ignore ignored ignore_loss no_train skip_loss exclude excluded",
    _LOSS,
)
_MORE = _each("train_detail train_on_input train_on_inputs train_on_prompt", _LOSS)  # parts of a turn, or human turns
_TOO_COMMON = ("loss", "weight", "train", "training", "masked", "ignore", "ignored", "exclude",
               "excluded")  # allowed at the top of a record  # fmt: skip
# Keys by which other programs choose the clip, the frames and the size of a record's video or picture.
_WHOLE = f"--fps, --nframes and --max-pixels apply to all videos, which are seen whole: cut the file; or, {_NOTE}"
_SIZE = f"--min-pixels and --max-pixels apply to all pictures: leave it out; or, {_NOTE}"
_OF_VISUALS = {
    "video": dict.fromkeys(SETTINGS["video"], _WHOLE)
    | _each(
        "start end start_time end_time start_sec end_sec start_second end_second start_seconds end_seconds start_frame "
        "end_frame start_pts end_pts clip_start clip_end clip_start_time clip_end_time video_start_time video_end_time "
        "target_fps n_frames max_num_frames frame_indices frames_indices frame_idx video_min_pixels video_max_pixels",
        _WHOLE,
    ),
    "image": dict.fromkeys(SETTINGS["image"], _SIZE) | _each("image_min_pixels image_max_pixels", _SIZE),
}
_RATES, _FILES_RATE = ("fps", "raw_fps", "video_fps", "frame_rate"), 10
_COUNTED, _LASTS = ("nframes", "num_frames", "n_frames"), ("duration", "video_duration", "video_length")
_CLOSE = 0.8  # of difflib; "imgae" and "image" have 0.8, "image_id" and "image" 0.77


def check_keys(raw: Mapping[str, Any]) -> None:
    """Raise InputError if a key at the top of a record has a value that would be ignored."""
    for key, value in raw.items():
        remedy = None if key in _KEYS else _unread(raw, key, value)
        if remedy is not None:
            raise InputError(f"its key {brief(key)} is not read: {remedy}")


def _unread(raw: Mapping[str, Any], key: str, value: Any) -> str | None:
    """What to do about a key at the top of a record; None: it changes nothing."""
    name = _plain(key)
    if name == "kto_tag" and value not in (None, ""):
        return _WANTED
    if name in _JUDGED and value is False:
        return f"{_WANTED}; {_NOTE}"
    if name not in _TOO_COMMON and not (_counts(name, value) and _adds_no_loss(name, value)):
        return _LOSS
    if _empty(value):
        return None
    remedy = _remedy(key)
    if remedy is not None:
        return remedy
    instead = next((ours for ours, names in _INSTEAD.items() if name in names and _empty(raw.get(ours))), None)
    if instead is not None:
        return _INSTEAD[instead][name]
    held = (names[name] for kind, names in _OF_VISUALS.items() if name in names and not _empty(raw.get(kind)))
    return None if value == 0 or _describes_file(raw, name, value) else next(held, None)


def _describes_file(raw: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether a number beside a video only describes its file: a rate of ten frames per second or more is the file's,
    not one to sample at, and a clip that ends where the video ends cuts nothing off there."""
    rates = (raw.get(key) for key in _RATES)
    described = any(isinstance(rate, (int, float)) and rate >= _FILES_RATE for rate in rates)
    return (described and name in (*_RATES, *_COUNTED)) or ("end" in name and value in (raw.get(key) for key in _LASTS))


def _counts(name: str, value: Any) -> bool:
    """Whether a key about the weight in the loss agrees with the weight that everything has, which is 1."""
    if name in _LEFT_OUT:
        return _empty(value) or value == 0
    return name not in _COUNTS or value in (None, "", True, 1)


def _adds_no_loss(name: str, value: Any) -> bool:
    """Whether a key does not ask for a loss on what the human says, or on parts of a turn."""
    return name not in _MORE or not value or _empty(value)


def check_turn_keys(turn: Mapping[str, Any], role: str) -> None:
    """Raise InputError if a key of a turn has a value that would be ignored; role: user, assistant or system."""
    for key, value in turn.items():
        name = _plain(key)
        if name in _OF_TURNS and not _empty(value):
            raise InputError(f"a turn's key {brief(key)} is not read: {_OF_TURNS[name]}")
        counts = _counts(name, value) and (name != "mask" or value in (None, ""))
        if role != "assistant":  # other turns have no loss, and may say so
            counts = counts or name in _LEFT_OUT or name == "mask" or value in (False, 0)
        if not (counts and _adds_no_loss(name, value)):
            raise InputError(f"a turn's key {brief(key)} is not read: {_LOSS}")


def named(keys: Iterable[str]) -> str:
    """The first keys of something, for a message."""
    found = list(keys)
    return ", ".join(brief(key, 20) for key in found[:4]) + (", ..." if len(found) > 4 else "") or "no keys"


@lru_cache(4096)
def _remedy(key: str) -> str | None:
    name = _plain(key)
    if name in _FOREIGN:
        return _FOREIGN[name] + (_CONVERT if key in _CONVERTED else "")
    ours = _misspelt(key)
    return None if ours is None else f"did you mean {ours!r}?"


def _misspelt(key: str) -> str | None:
    """The key of this package that was probably meant. Keys like an id or the size of a picture are taken as notes."""
    if len(key) > 40:
        return None
    words = _plain(key)
    if re.fullmatch(f"({'|'.join(key.removesuffix('s') for key in _KEYS)})s?([_.][a-z]+)+|[a-z]+ids?", words):
        return None
    return next(iter(difflib.get_close_matches(words.strip("_.:"), _HELD, 1, _CLOSE)), None)


def _plain(key: str) -> str:
    """A key as this module's tables spell it: imageUrls, Image-URLs and image_urls become one."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", key.strip()).lower().replace("-", "_").replace(" ", "_")


def _empty(value: Any) -> bool:
    """Whether a value is empty; some programs write every key into every record."""
    return (
        value is None or value is False or (isinstance(value, (str, list, dict)) and len(value) == 0) or value == "[]"
    )
