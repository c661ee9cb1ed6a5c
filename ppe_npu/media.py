"""Pictures and video files from disk, as pixels: Pillow for pictures, PyAV for videos.

transformers' own video reading tries torchcodec and torchvision first; neither loads on a machine without CUDA
libraries, so videos are decoded here and given to the processor as frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ppe_npu.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_FPS = 2.0  # frames per second that Qwen2.5-VL takes from a video when nothing is asked for
_READ_SECONDS = 20.0  # one read of a video file: a playlist that never ends, or a dead disk, is given up after it
_WHOLE = 0.9  # share of the stated frames that must be there: containers round, a file that broke off lacks more


@dataclass(frozen=True)
class VideoSampling:
    """Which frames of a video are taken, and how large they may be.

    Attributes:
        fps: frames per second to take; never together with nframes. DEFAULT_FPS when neither is given.
        nframes: how many frames to take, evenly spaced; a shorter video gives all that it has.
        min_pixels, max_pixels: bounds on height * width of a frame after resizing; None: the processor's own.
        min_frames, max_frames: bounds on the number of frames that fps may lead to.

    Raises:
        InputError: both fps and nframes, or a number that is not positive, or bounds that contradict each other.
    """

    fps: float | None = None
    nframes: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    min_frames: int = 4
    max_frames: int = 768

    def __post_init__(self) -> None:
        if self.fps is not None and self.nframes is not None:
            raise InputError(f"fps={self.fps} and nframes={self.nframes} exclude each other: give one of them")
        for name in ("fps", "nframes", "min_pixels", "max_pixels", "min_frames", "max_frames"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}={value} must be greater than 0")
        for low, high in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
            small, large = getattr(self, low), getattr(self, high)
            if small is not None and large is not None and small > large:
                raise InputError(f"{low}={small} is larger than {high}={large}")

    def count(self, total: int, fps: float, multiple: int) -> int:
        """How many of `total` frames, `fps` a second, are taken: a multiple of `multiple` where enough exist."""
        if self.nframes is not None:
            wanted = float(self.nframes)
        else:
            wanted = min(max(total / fps * (self.fps or DEFAULT_FPS), self.min_frames), self.max_frames)
        wanted = min(wanted, total)
        return max(int(wanted // multiple) * multiple, min(multiple, total))

    def indices(self, total: int, fps: float, multiple: int) -> list[int]:
        """Which frames these are: evenly spaced from the first to the last."""
        return torch.linspace(0, total - 1, self.count(total, fps, multiple)).round().long().tolist()


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
        indices: of the T frames in the file; None: the file holds these frames and no others.
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


def load_image(path: str | Path) -> Image:
    """Read a picture as RGB, turned upright by its EXIF orientation.

    Raises:
        InputError: there is no such file, or it is no picture that Pillow can read.
    """
    from PIL import ImageOps

    with _open_image(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels by a picture's header, as it is stored: not turned upright, and nothing decoded.

    Raises:
        InputError: as load_image, but for what only decoding finds.
    """
    with _open_image(path) as image:
        return image.height, image.width


@contextlib.contextmanager
def _open_image(path: str | Path) -> Iterator[Image]:
    """A picture whose header was read; what goes wrong with it is an InputError."""
    from PIL import Image

    path = _existing_file(path, "image")
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's readers raise what their formats suggest: struct.error, EOFError, ...
        reason = "it is not a picture" if isinstance(error, Image.UnidentifiedImageError) else first_line(error)
        raise InputError(f"image {path} cannot be read ({reason}): give a whole PNG, JPEG or WebP file") from error


def load_video(path: str | Path, sampling: VideoSampling = VideoSampling(), multiple: int = 2) -> Video:
    """Decode the frames of a video that `sampling` asks for, evenly spaced from the first to the last.

    Args:
        path: a file that FFmpeg reads.
        sampling: which frames.
        multiple: frames that the vision tower joins into one step (temporal_patch_size); the number of frames is a
            multiple of it where the video has enough.

    Raises:
        InputError: no such file, no video, no frame in it, or one that breaks off.
    """
    header = video_header(path)
    wanted = sampling.indices(header.frames, header.fps, multiple)
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        frames, decoded = _decode(container, stream, wanted)
    if not frames:
        raise InputError(f"video {path} holds no frames that can be decoded: record or convert it again")
    if len(frames) < len(wanted) - 1 and decoded < _WHOLE * header.frames:
        raise InputError(f"video {path} breaks off after {decoded} of {header.frames} frames: give a whole video file")
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"video {path} changes its frame size midway: convert it to one size, e.g. with ffmpeg")
    # Positions in time follow what was taken, as in Qwen's own reading: T frames over the file's duration.
    fps = len(frames) / header.frames * header.fps
    return Video(torch.stack(frames), fps, str(path), tuple(wanted[: len(frames)]), header.fps)


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

    path = _existing_file(path, "video")
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


def _count_packets(container) -> int:
    """Frames of a container that does not state them (a stream from a camera, say), counted without decoding."""
    return sum(1 for packet in container.demux(video=0) if packet.size)


def _decode(container, stream, wanted: list[int]) -> tuple[list[torch.Tensor], int]:
    """The frames with these (rising) indices, each uint8 [3, H, W], and how many frames were passed to get them;
    fewer when the file ends early."""
    frames: list[torch.Tensor] = []
    decoded = 0
    for index, frame in enumerate(container.decode(stream)):
        decoded = index + 1
        while len(frames) < len(wanted) and wanted[len(frames)] == index:
            frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
        if len(frames) == len(wanted):
            break
    return frames, decoded


def _existing_file(path: str | Path, kind: str) -> Path:
    if str(path).startswith(("http://", "https://")):
        raise InputError(f"{kind} {path} is an address: download it first and give the file's path")
    path = Path(path).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise InputError(f"{kind} {path} cannot be a file ({first_line(error)}): check the path") from error
    if not there:
        raise InputError(f"{kind} {path} does not exist: check the path")
    if not path.is_file():
        raise InputError(f"{kind} {path} is a folder: give the path of a file")
    return path
