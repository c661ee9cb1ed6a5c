"""Frames of videos from disk: PyAV for video files, Pillow for folders of frames.

transformers' own video reading tries torchcodec and torchvision first; neither loads on a machine without CUDA
libraries, so videos are decoded here and given to the processor as frames.

The index of a file (video_index.py) lists the frames that it shows and their times. VideoSampling chooses among them
from the header alone, so the number and the size of the frames are known before any is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppe_npu.data.decoding import shown_frames
from ppe_npu.data.pictures import load_image
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.video_index import video_index
from ppe_npu.errors import InputError
from ppe_npu.utils.paths import existing_file, expanded, is_folder, may_be_read

if TYPE_CHECKING:
    from PIL.Image import Image

_EVEN = VideoSampling()

Resizing = Callable[[int, int, int], Callable[[torch.Tensor], torch.Tensor]]


@dataclass(frozen=True)
class VideoHeader:
    """The size of a video: number of frames, frames per second, and height and width in pixels when upright."""

    frames: int
    fps: float
    height: int
    width: int


@dataclass(frozen=True)
class Video:
    """Frames of one video.

    Attributes:
        frames: uint8 [T, 3, H, W], RGB.
        fps: frames per second of the taken frames (not of the file): T / duration.
        path: where they came from.
        indices: numbers of the T frames in the file, counted from the first of them; None: the file has no others.
        file_fps: frames per second of the file; None: fps.
    """

    frames: torch.Tensor
    fps: float
    path: str
    indices: tuple[int, ...] | None = None
    file_fps: float | None = None

    def __post_init__(self) -> None:
        if self.indices is not None and len(self.indices) != len(self.frames):
            given = f"{len(self.indices)} indices for {len(self.frames)} frames"
            raise InputError(f"video {self.path} has {given}: give one index per frame")

    @property
    def seconds_per_frame(self) -> float:
        """Seconds from one taken frame to the next."""
        return 1.0 / self.fps

    @property
    def metadata(self) -> dict[str, Any]:
        """The video_metadata for transformers' processors; frames_indices / fps are the frames' times in seconds."""
        indices = list(range(len(self.frames)) if self.indices is None else self.indices)
        return {"total_num_frames": indices[-1] + 1, "fps": self.file_fps or self.fps, "frames_indices": indices}


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video file as a picture: nothing is decoded until load().

    Attributes:
        path: a file that FFmpeg reads.
        seconds: the time at which the frame is shown; a time after the end means the last frame.
    """

    path: str
    seconds: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), upright."""
        header = video_header(self.path)
        return header.width, header.height

    def load(self) -> Image:
        """The frame as RGB, upright. Decoding starts at a key frame before it.

        Raises:
            InputError: no such file, or no frame there.
        """
        from PIL import Image

        index = video_index(self.path)
        frames = shown_frames(existing_file(self.path, "video"), index, [index.place_at(self.seconds)])
        return Image.fromarray(next(iter(frames)))


def load_still(image: Any) -> Image:
    """A message's image as RGB, upright: a VideoFrame, or what load_image takes.

    Raises:
        InputError: as VideoFrame.load and load_image.
    """
    return image.load() if isinstance(image, VideoFrame) else load_image(image)


def load_video(
    path: str | Path, sampling: VideoSampling = _EVEN, multiple: int = 2, resizing: Resizing | None = None
) -> Video:
    """Read the frames of a video, or of a clip of it, that `sampling` asks for.

    Args:
        path: a file that FFmpeg reads, or a folder of frames (.jpg, .png) whose names sort in order of time,
            their numbers as numbers (2.jpg before 10.jpg).
        sampling: which frames are taken.
        multiple: frames that the vision tower joins into one step (temporal_patch_size); the number of frames is a
            multiple of it if the video has enough.
        resizing: takes the number of frames, their height and width, and returns a function that resizes one frame [3,
            H, W]. Frames are resized as they are decoded, so that only one full-size frame is in memory.

    Raises:
        InputError: no such file, no video, no frame in it or in the clip, or one that breaks off.
    """
    if not isinstance(sampling, VideoSampling):
        raise InputError(f"sampling is of type {type(sampling).__name__}: give a VideoSampling of ppe_npu.data.inputs")
    if is_folder(path):
        return _load_folder(expanded(path), sampling, multiple, resizing)
    index, file = video_index(path), existing_file(path, "video")
    planned, wanted = _plan(video_header(path), path, sampling, multiple)
    frames = shown_frames(file, index, index.places(wanted))
    return _filled(planned, (torch.from_numpy(frame).permute(2, 0, 1) for frame in frames), resizing)


def video_header(path: str | Path) -> VideoHeader:
    """The header of a video file, found from its packets; only the first frame is decoded.

    Raises:
        InputError: as load_video, except for faults that only decoding finds.
    """
    index = video_index(path)
    return VideoHeader(len(index), index.fps, index.height, index.width)


def planned_video(header: VideoHeader, path: str | Path, sampling: VideoSampling, multiple: int) -> Video:
    """The Video that load_video returns for a file with this header, with frames on the meta device (no content).

    Raises:
        InputError: the clip that is asked for is not in the video.
    """
    return _plan(header, path, sampling, multiple)[0]


def _plan(
    header: VideoHeader, path: str | Path, sampling: VideoSampling, multiple: int, origin: int = 0
) -> tuple[Video, list[int]]:
    """(planned_video, the numbers of its frames in the file). The times of the Video start with the clip."""
    wanted, length = sampling.of_video(path).indices(header.frames, header.fps, multiple, origin)
    frames = torch.empty((len(wanted), 3, header.height, header.width), dtype=torch.uint8, device="meta")
    indices = tuple(index - wanted[0] for index in wanted)
    # Positions in time follow from the taken frames, as in Qwen's own reading: T frames over the clip's duration.
    return Video(frames, len(wanted) / length * header.fps, str(path), indices, header.fps), wanted


def _filled(planned: Video, frames: Iterable[torch.Tensor], resizing: Resizing | None) -> Video:
    """A planned video with its frames, each uint8 [3, H, W]."""
    shape = planned.frames.shape
    resize = resizing(len(planned.frames), *shape[-2:]) if resizing else None
    filled = None
    for number, frame in enumerate(frames):
        if frame.shape != shape[1:]:
            raise InputError(
                f"video {planned.path} changes its frame size midway: convert it to one size, e.g. with ffmpeg"
            )
        frame = resize(frame) if resize else frame
        filled = torch.empty((len(planned.frames), *frame.shape), dtype=torch.uint8) if filled is None else filled
        filled[number] = frame
    return replace(planned, frames=filled)


def _load_folder(path: Path, sampling: VideoSampling, multiple: int, resizing: Resizing | None) -> Video:
    """load_video for a folder."""
    if not may_be_read(path):
        raise InputError(f"video {path} is a folder that may not be read (permission denied): change its permissions")
    files = [file for file in path.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png")]
    files.sort(key=lambda file: (_with_numbers(file.name), file.name))
    if not files:
        raise InputError(f"video {path} is a folder without frames: give a video file or a folder of .jpg or .png")
    if sampling.frame_rate is None:
        raise InputError(f"video {path} is a folder of frames, which has no frame rate: set VideoSampling.frame_rate")
    width, height = load_image(files[0]).size
    header = VideoHeader(len(files), sampling.frame_rate, height, width)
    planned, wanted = _plan(header, path, sampling, multiple, origin=1)
    frames = (torch.from_numpy(np.array(load_image(files[number]))).permute(2, 0, 1) for number in wanted)
    return _filled(planned, frames, resizing)


def _with_numbers(name: str) -> list[tuple[str, int]]:
    """A sort key for a name: pairs of the text before each number and the number."""
    return [(text, int(number or -1)) for text, number in re.findall(r"([^0-9]*)([0-9]{0,18})", name)]
