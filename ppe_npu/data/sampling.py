"""VideoSampling: which frames of a video are taken."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ppe_npu.errors import InputError
from ppe_npu.settings import check_fields, setting
from ppe_npu.utils.paths import expanded

DEFAULT_FPS = 2.0  # frames per second that Qwen2.5-VL takes from a video when nothing is asked for


@dataclass(frozen=True)
class VideoSampling:
    """Which frames of a video are taken, and how large they may be.

    Attributes:
        fps: frames per second to take; never together with nframes. DEFAULT_FPS when neither is given.
        nframes: how many frames to take, evenly spaced; a shorter video gives all that it has.
        min_pixels, max_pixels: bounds on height * width of a frame after resizing; None: the processor's own.
        min_frames, max_frames: bounds on the number of frames that fps may lead to.
        total_pixels: bound on height * width * frames / 2 of a video after resizing. It lowers the bound on a frame,
            but not below 1.05 times min_pixels (qwen-vl-utils' rule). None: no bound.
        start, end: seconds; only the clip between them is used. None: from the first frame, or to the last.
        frame_rate: frames per second of a folder of frames, which states none; None for a file.
        middles: whether the frames are the middles of nframes equal segments, with repetitions if the video has fewer
            frames; else they are evenly spaced from the first to the last.

    Raises:
        InputError: both fps and nframes, or a number that is not positive, or bounds that contradict each other.
    """

    fps: float | None = setting(None, above=0)
    nframes: int | None = setting(None, above=0)
    min_pixels: int | None = setting(None, above=0, most=2**26)  # no frame that is read has more
    max_pixels: int | None = setting(None, above=0)
    min_frames: int = setting(4, above=0)
    max_frames: int = setting(768, above=0)
    start: float | None = setting(None, least=0)
    end: float | None = setting(None, above=0)
    frame_rate: float | None = setting(None, above=0)
    middles: bool = False
    total_pixels: int | None = setting(None, above=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.fps is not None and self.nframes is not None:
            raise InputError(f"fps={self.fps} and nframes={self.nframes} exclude each other: give one of them")
        for low, high in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
            small, large = getattr(self, low), getattr(self, high)
            if small is not None and large is not None and small > large:
                raise InputError(f"{low}={small} is larger than {high}={large}: exchange them, or leave one out")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise InputError(f"start={self.start} is not before end={self.end}: give a later end, or leave one out")

    def of_video(self, path: str | Path) -> VideoSampling:
        """The rules for one video."""
        return self

    def within(self, clip: VideoSampling | None) -> VideoSampling:
        """`clip` (a sample's own rules), changed by the values that are set here; fps and nframes are set together."""
        if clip is None:
            return self
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        named = {name: value for name, value in named.items() if value != getattr(type(self), name)}
        if "fps" in named or "nframes" in named:
            named |= {"fps": self.fps, "nframes": self.nframes}
        return replace(clip, **named)

    def frame_pixels(self, frames: int, least: int, most: int, whole: bool = False) -> tuple[int, int]:
        """(min, max) of height * width of a frame, for a video of this number of frames.

        Args:
            least, most: the processor's own bounds, which apply where none are set here.
            whole: whether the processor bounds height * width * frames, as Qwen3-VL's does; if total_pixels is set, the
                returned bounds are then for all frames together.
        """
        least, most = self.min_pixels or least, self.max_pixels or most
        if self.total_pixels is not None:
            most = max(min(most, self.total_pixels * 2 // max(frames, 1)), int(least * 1.05))
            if whole:
                return least * frames, most * frames
        return least, most

    def indices(self, total: int, fps: float, multiple: int, origin: int = 0) -> tuple[list[int], int]:
        """(the numbers of the frames that are taken of `total`, ascending; the number of frames of the clip).

        Middles are those of get_index in OpenGVLab/Ask-Anything video_chat2/mvbench.ipynb, with the same rounding.

        Args:
            origin: number of the frame at 0 seconds: 0 in a file; 1 in folders whose first frame is 00001.jpg.

        Raises:
            InputError: the clip starts after the last frame.
        """
        first = 0 if self.start is None else max(round(self.start * fps) - origin, 0)
        last = total - 1 if self.end is None else min(round(self.end * fps) - origin, total - 1)
        if first > last:
            clip = f"the clip from {self.start} s to {self.end} s"
            raise InputError(f"{clip} is outside the video, which lasts {total / fps:.1f} s: give other times")
        length = last - first + 1
        count = self.count(length, fps, multiple)
        if self.middles and (count < length or self.nframes is not None):
            segment = (last - first) / count
            return [int(first + segment / 2 + round(segment * number)) for number in range(count)], length
        import torch  # here, because an evaluation's processes start sooner if torch is imported only when needed

        return torch.linspace(first, last, count).round().long().tolist(), length

    def count(self, total: int, fps: float, multiple: int) -> int:
        """How many of `total` frames, `fps` per second, are taken: a multiple of `multiple` if there are enough."""
        if self.nframes is not None:
            wanted = float(self.nframes)
        else:
            wanted = min(max(total / fps * (self.fps or DEFAULT_FPS), self.min_frames), self.max_frames)
        if self.middles and self.nframes is not None:
            return max(int(wanted // multiple) * multiple, multiple)
        wanted = min(wanted, total)
        return max(int(wanted // multiple) * multiple, min(multiple, total))


@dataclass(frozen=True)
class Drawn(VideoSampling):
    """Evenly spaced frames of each video, whose number is drawn between two bounds.

    Attributes:
        least, most: bounds on the number of frames; all are taken of a video that has fewer.
        seed: together with the names of the video and its folder it decides the number, wherever they lie and however
            the path is spelled. So every epoch takes the same frames, and tokens can be counted before a video is read.
    """

    least: int = setting(16, above=0)
    most: int = setting(96, above=0)
    seed: int = setting(0, least=0)

    @classmethod
    def of(cls, sampling: VideoSampling, bounds: tuple[int, int], seed: int) -> Drawn:
        """`sampling` with a drawn number of frames in place of its own."""
        own = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
        return cls(**own | {"fps": None, "nframes": None}, least=bounds[0], most=bounds[1], seed=seed)

    def of_video(self, path: str | Path) -> VideoSampling:
        own = {field.name: getattr(self, field.name) for field in fields(VideoSampling)}
        place = expanded(path)
        folder, name = os.path.split(os.path.realpath(place) if place.is_dir() else place)  # a folder of frames
        name = f"{os.path.basename(os.path.realpath(folder))}/{name}"
        return VideoSampling(**own | {"nframes": random.Random(f"{self.seed} {name}").randint(self.least, self.most)})
