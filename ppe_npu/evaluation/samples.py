"""A benchmark's sample as a conversation, and an estimate of its length from file headers, before any decoding."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppe_npu.config import CompressionConfig
from ppe_npu.data.containers import Patience, open_video
from ppe_npu.data.lengths import TokenCounter
from ppe_npu.data.pictures import image_size
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.tiles import is_tiled
from ppe_npu.data.turns import user_turn
from ppe_npu.data.videos import VideoFrame
from ppe_npu.errors import InputError, shown
from ppe_npu.utils.paths import existing_file

Sample = Mapping[str, Any]
_CHARACTERS = 4  # per text token, roughly
_SCREEN = (448, 448)  # (height, width) assumed for a visual whose size is not known
_FRAMES = 16  # assumed for a video whose header cannot be read
_TICKS = 10**6  # per second: FFmpeg gives the duration of a file in microseconds


@dataclass(frozen=True)
class Measure:
    """The properties of a sample that decide with which others it is batched.

    Attributes:
        bucket: samples of different buckets are never in one batch.
        before, after: about how many tokens the prompt has before compression, and in the first decoder layer.
        source: the sample's file; samples of equal length about the same file are answered consecutively.
    """

    bucket: str
    before: int
    after: int
    source: str = ""


def visuals(sample: Sample) -> dict[str, list[Any]]:
    """{"image": pictures or paths, "video": paths} of a sample.

    Raises:
        InputError: a path that is no path, such as a number, which the system would take for an open file.
    """
    found: dict[str, list[Any]] = {"image": [], "video": []}
    for key, kind in (("image", "image"), ("image_path", "image"), ("video_path", "video")):
        value = sample.get(key)
        if value is not None:
            values = list(value) if isinstance(value, (list, tuple)) else [value]
            wrong = [item for item in values if key != "image" and not isinstance(item, (str, Path))]
            if wrong:
                raise InputError(f"{key} {shown(wrong[0])} is a {type(wrong[0]).__name__}: give the path of a file")
            found[kind] += values
    return found


def conversation(sample: Sample) -> list[dict[str, Any]]:
    """A sample as one user turn: visuals replace the prompt's placeholders if it has one for each, else precede it."""
    found = visuals(sample)
    return user_turn(sample["prompt"], found["image"], found["video"])


def sampling_of(sample: Sample, asked: VideoSampling | None) -> VideoSampling:
    """The rule that chooses a sample's frames: its own, overridden by the settings that `asked` changes."""
    return (asked or VideoSampling()).within(sample.get("sampling"))


def measure(
    sample: Sample,
    processor: Any,
    config: CompressionConfig,
    asked: VideoSampling | None = None,
    showings: int = 1,
) -> Measure:
    """A sample's Measure. A file that cannot be read gets a typical size here; answering the sample reports the error.

    Args:
        showings: how often every image is shown; more than once only for PVC's models.
    """
    found, sampling = visuals(sample), sampling_of(sample, asked)
    count = TokenCounter(processor, config, showings)
    counted = [_image_tokens(count, image) for image in found["image"]]
    counted += [_video_tokens(count, video, sampling) for video in found["video"]]
    text = len(sample["prompt"]) // _CHARACTERS
    before, after = (text + sum(column) for column in zip((0, 0), *counted))
    # build_inputs takes one sampling per call, so only videos with the same sampling share a batch.
    bucket = f"video {sampling}" if found["video"] else "image" if found["image"] else "text"
    source = next((str(value) for value in [*found["video"], *found["image"]] if isinstance(value, (str, Path))), "")
    return Measure(bucket, before, after, source)


def _image_tokens(count: TokenCounter, image: Any) -> tuple[int, int]:
    height, width = _image_size(image) if isinstance(image, (str, Path)) else _size_or_screen(image)
    try:
        return count.image(height, width, image)
    except InputError:  # answering the sample reports the error
        return count.image(*_SCREEN)


def _video_tokens(count: TokenCounter, video: Any, sampling: VideoSampling) -> tuple[int, int]:
    maker = count.processor.video_processor
    taken = frames_taken(video, sampling, 1 if is_tiled(count.processor) else maker.temporal_patch_size)
    try:
        return count.video(*taken, sampling)
    except InputError:  # answering the sample reports the error
        return count.video(_FRAMES, *_SCREEN, VideoSampling())


def _size_or_screen(image: Any) -> tuple[int, int]:
    """(height, width) of a picture; _SCREEN if its size cannot be read."""
    try:
        return image.size[::-1] if isinstance(image, VideoFrame) else image_size(image)
    except InputError:
        return _SCREEN


_image_size = functools.lru_cache(maxsize=2**16)(_size_or_screen)


def frames_taken(video: Any, sampling: VideoSampling, multiple: int) -> tuple[int, int, int]:
    """(number of frames that are taken from a video, their height, their width), according to its header.

    Args:
        multiple: frames per temporal step.
    """
    total, fps, width, height = _video_facts(str(video)) if isinstance(video, (str, Path)) else (_FRAMES, 1.0, *_SCREEN)
    try:
        return len(sampling.indices(total, fps, multiple)[0]), height, width
    except InputError:  # a clip outside the video; answering the sample reports the error
        return sampling.count(total, fps, multiple), height, width


@functools.lru_cache(maxsize=2**16)
def _video_facts(path: str) -> tuple[int, float, int, int]:
    """(frames, frames per second, width, height), from a container's header or from a folder of frames."""
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        height, width = _image_size(os.path.join(path, names[0])) if names else _SCREEN
        return max(len(names), 1), 1.0, width, height
    try:
        with open_video(existing_file(path, "video"), Patience(path)) as video:
            stream = video.stream
            fps = float(stream.average_rate or stream.guessed_rate or 1)
            seconds = (video.container.duration or 0) / _TICKS
            return max(stream.frames or int(seconds * fps), 1), fps, stream.width or 1, stream.height or 1
    except (InputError, OSError):  # answering the sample reports the error
        return _FRAMES, 1.0, *_SCREEN
