"""Frames of videos from disk: PyAV for video files, Pillow for folders of frames.

transformers' own video reading tries torchcodec and torchvision first; neither loads on a machine without CUDA
libraries, so videos are decoded here and given to the processor as frames.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppe_npu.data.paths import existing_file, expanded, is_folder
from ppe_npu.data.pictures import load_image
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

_FAR = 300  # frames before a clip that are worth a seek
_READ_SECONDS = 20.0  # one read of a video file: a playlist that never ends, or a dead disk, is given up after it
_EVEN = VideoSampling()
_WHOLE = 0.9  # share of the stated frames that must be there: containers round, a file that broke off lacks more


@dataclass(frozen=True)
class VideoHeader:
    """What a video file says of itself: frames, frames per second, height and width in pixels."""

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
        indices: of the T frames, counted from the first; None: the file holds these frames and no others.
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
            raise InputError(f"video {self.path} has {given}: give one for each")

    @property
    def seconds_per_frame(self) -> float:
        """Seconds from one taken frame to the next."""
        return 1.0 / self.fps

    @property
    def metadata(self) -> dict[str, Any]:
        """What transformers' processors are told of the file (video_metadata); indices / fps is a frame's second."""
        indices = list(range(len(self.frames)) if self.indices is None else self.indices)
        return {"total_num_frames": indices[-1] + 1, "fps": self.file_fps or self.fps, "frames_indices": indices}


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video file as a picture: nothing is decoded until load().

    Attributes:
        path: of a file that FFmpeg reads.
        seconds: the frame that is shown at this time; behind the end, the last one.
    """

    path: str
    seconds: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), from the file's header."""
        return _frame_size(self.path)

    def load(self) -> Image:
        """The frame as RGB. Decoding starts at the key frame before it.

        Raises:
            InputError: no such file, or no frame there.
        """
        shown = None
        with _open_video(self.path) as (container, stream):
            first = stream.start_time or 0
            container.seek(first + int(self.seconds / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if shown is not None and float((frame.pts - first) * stream.time_base) > self.seconds + 1e-6:
                    break
                shown = frame
        if shown is None:
            raise InputError(f"video {self.path} has no frame at {self.seconds} s: record or convert it again")
        return shown.to_image()


@functools.lru_cache(maxsize=2**12)
def _frame_size(path: str) -> tuple[int, int]:
    with _open_video(path) as (_, stream):
        return stream.width, stream.height


def load_video(path: str | Path, sampling: VideoSampling = _EVEN, multiple: int = 2) -> Video:
    """Read the frames of a video, or of a clip of it, that `sampling` asks for.

    Args:
        path: a file that FFmpeg reads, or a folder of frames (.jpg, .png) whose names sort in order of time.
        sampling: which frames.
        multiple: frames that the vision tower joins into one step (temporal_patch_size); the number of frames is a
            multiple of it where the video has enough.

    Raises:
        InputError: no such file, no video, no frame in it or in the clip, or one that breaks off.
    """
    if is_folder(path):
        return _load_frames(expanded(path), sampling, multiple)
    header = video_header(path)
    wanted, length = sampling.indices(header.frames, header.fps, multiple)
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        frames, passed = _decode(container, stream, wanted, header.fps)
    if not frames:
        raise InputError(f"video {path} holds no frames that can be decoded: record or convert it again")
    if len(frames) < len(wanted) - 1 and passed < _WHOLE * (wanted[-1] + 1):
        raise InputError(f"video {path} breaks off after {passed} of {header.frames} frames: give a whole video file")
    return _video(frames, length, header.fps, path, wanted)


def video_header(path: str | Path) -> VideoHeader:
    """What a video's container says; where it does not count its frames, its packets are counted, none is decoded.

    Raises:
        InputError: as load_video, but for what only decoding finds.
    """
    with _open_video(path) as (container, stream):
        frames = stream.frames or _count_packets(container)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        header = VideoHeader(frames, fps, stream.height, stream.width)
    if frames < 1:
        raise InputError(f"video {path} holds no frames: record or convert it again")
    if fps <= 0:
        raise InputError(f"video {path} states no frame rate: convert it, e.g. with ffmpeg -i IN OUT.mp4")
    if header.height < 1 or header.width < 1:
        raise InputError(f"video {path} states no frame size: record or convert it again")
    return header


@contextlib.contextmanager
def _open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream); what goes wrong with them is an InputError."""
    import av

    path = existing_file(path, "video")
    try:
        with av.open(str(path), timeout=_READ_SECONDS, metadata_errors="replace") as container:
            if not container.streams.video:
                raise InputError(f"video {path} holds no video stream: give a file with pictures in it")
            yield container, container.streams.video[0]
    except InputError:
        raise
    except Exception as error:  # of damaged files not all is an av.FFmpegError: ValueError, MemoryError, ...
        reason = getattr(error, "strerror", None) or first_line(error)  # FFmpeg's own words, without the path again
        raise InputError(f"video {path} cannot be decoded ({reason}): give a whole video file") from error


def _load_frames(path: Path, sampling: VideoSampling, multiple: int) -> Video:
    """load_video of a folder."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise InputError(f"video {path} is a folder without frames: give a video file or a folder of .jpg or .png")
    if sampling.frame_rate is None:
        raise InputError(f"video {path} is a folder of frames, which states no rate: give VideoSampling.frame_rate")
    wanted, length = sampling.indices(len(files), sampling.frame_rate, multiple, origin=1)
    frames = [torch.from_numpy(np.array(load_image(files[index]))).permute(2, 0, 1) for index in wanted]
    return _video(frames, length, sampling.frame_rate, path, wanted)


def _video(frames: list[torch.Tensor], length: int, fps: float, path: str | Path, wanted: list[int]) -> Video:
    """A Video of frames taken from a clip of `length` at `fps`; its time begins with the clip's."""
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"video {path} changes its frame size midway: convert it to one size, e.g. with ffmpeg")
    indices = tuple(index - wanted[0] for index in wanted[: len(frames)])
    # Positions in time follow what was taken, as in Qwen's own reading: T frames over the clip's duration.
    return Video(torch.stack(frames), len(frames) / length * fps, str(path), indices, fps)


def _count_packets(container) -> int:
    """Frames of a container that does not state them (a stream from a camera, say), counted without decoding."""
    return sum(1 for packet in container.demux(video=0) if packet.size)


def _decode(container, stream, wanted: list[int], fps: float) -> tuple[list[torch.Tensor], int]:
    """The frames with these (rising) indices, each uint8 [3, H, W], and how far into the file they were looked for;
    fewer when it ends early.

    A clip that starts late is sought: frames before its key frame are not decoded, and indices come from times.
    """
    frames: list[torch.Tensor] = []
    first, sought, passed = stream.start_time or 0, wanted[0] >= _FAR, 0
    if sought:
        container.seek(first + int(wanted[0] / fps / stream.time_base), stream=stream)
    for number, frame in enumerate(container.decode(stream)):
        index = round(float((frame.pts - first) * stream.time_base) * fps) if sought else number
        passed = index + 1
        while len(frames) < len(wanted) and wanted[len(frames)] <= index:
            frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
        if len(frames) == len(wanted):
            break
    return frames, passed
