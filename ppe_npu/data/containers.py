"""Opens video files with FFmpeg, through PyAV: only the given file, only known formats, and within a time limit.

FFmpeg also opens much that is no video file: playlists and lists of files (some of which never end), name patterns,
addresses, and names with a colon as protocols. So it is restricted to known formats and to the file protocol.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line
from ppe_npu.utils.paths import IN_ITS_PLACE

_READ_SECONDS = 20.0  # that reading a small file may take
_PER_BYTE = 1e-7  # further seconds per byte: disks slower than 10 MB per second are given up
_PER_FRAME = 0.1  # further seconds per decoded frame: 8K on one core takes that long
_MOST_PIXELS = 2**26  # of a frame: twice 8K
_THREADED = 2**24  # pixels of a frame above which only one thread decodes, because each thread holds several frames
_LOST = 0.1  # fraction of the packets that may be damaged

# FFmpeg's names of demuxers for single files. Those for sound let the message say that a file has no pictures.
_VIDEO = """mov matroska avi flv live_flv mpegts mpeg mpegvideo h264 hevc vvc obu ivf m4v h263 h261 vc1 dirac cavsvideo
    avs2 avs3 mjpeg mjpeg_2000 mpjpeg ogg asf asf_o gif apng nut mxf gxf dv yuv4mpegpipe rm wtv nsv nuv pva ty dhav roq
    smk bink swf flic"""
_SOUND = "mp3 wav w64 flac aac ac3 eac3 aiff amr ape caf tta wv"
_FORMATS = ",".join(f"{_VIDEO} {_SOUND}".split())
_OTHERS = (  # other kinds of files that FFmpeg would open, by their first bytes
    (b"#EXTM3U", "a playlist"),
    (b"[playlist]", "a playlist"),
    (b"ffconcat", "a list of files"),
    (b"file '", "a list of files"),
    *IN_ITS_PLACE,
    (b"v=0", "the description of a stream"),
    (b";FFMETADATA", "a list of chapters"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"BM", "a picture"),
    (b"%!PS", "a document"),
    (b"%PDF", "a document"),
)
_LISTS = (b"<mpd", b"<playlist", b"<smil", b"<asx", b"<smoothstreamingmedia", b"<manifest", b"<assetmap")


class Patience:
    """A time limit for reading a file, which starts when it is created.

    Args:
        path: the path of the file, for messages.
        size: bytes to read.
        frames: number of frames to decode.
    """

    def __init__(self, path: str | Path, size: int = 0, frames: int = 0) -> None:
        # The other half is left for a single call of FFmpeg, during which check() cannot run.
        self.path, self.seconds = path, _READ_SECONDS / 2 + _PER_BYTE * size + _PER_FRAME * frames
        self._end = time.monotonic() + self.seconds

    def check(self) -> None:
        """Raise InputError if the time is over."""
        if time.monotonic() > self._end:
            raise self.over()

    def over(self) -> InputError:
        """The error to raise when the time is over."""
        limit = f"{self.seconds + _READ_SECONDS / 2:.0f} s"
        return InputError(f"video {self.path} cannot be read within {limit}: convert it, or copy it to a faster disk")


class DamagedError(Exception):
    """A packet cannot be decoded, and frames before it are still held by threads: decode again without threads."""


class OpenVideo:
    """An open video file.

    Attributes:
        container, stream: PyAV's container, and the stream in it that a player shows.
        format: FFmpeg's name of the container format.
        damaged: number of packets that could not be decoded. decoded: number of packets that were tried.
    """

    def __init__(self, path: str | Path, container: Any, patience: Patience, threads: bool) -> None:
        import av

        self.path, self.container, self._patience = path, container, patience
        self.format = container.format.name.split(",")[0]
        self.stream = _shown_stream(path, container)
        self.damaged = self.decoded = 0
        self._reason = ""
        self.stream.codec_context.options = {"max_pixels": str(_MOST_PIXELS)}
        # If FFmpeg's messages are logged in Python, a decoding thread may wait for Python while closing the file waits
        # for the thread, without end.
        listened = av.logging.get_level() is not None
        small = self.stream.width * self.stream.height <= _THREADED
        self._threaded = threads and small and not listened
        if self._threaded:
            self.stream.thread_type = "AUTO"

    def packets(self) -> Iterator[Any]:
        """Yield the stream's packets from its position on, then an empty one; a read error counts as the end."""
        import av

        source, done = self.container.demux(self.stream), False
        while not done:
            self._patience.check()
            try:
                packet = next(source, None)
            except av.error.ExitError as error:  # a call that lasted too long
                raise self._patience.over() from error
            except Exception as error:  # the file breaks off, or PyAV raises IndexError because streams come and go
                packet, self._reason = None, self._reason or _reason(error)
            done = packet is None
            yield av.Packet() if done else packet

    def decode(self, packet: Any) -> list[Any]:
        """The frames that the decoder returns for a packet of packets(); none for a damaged one.

        Raises:
            InputError: the time is over.
            DamagedError: the packet is damaged, and several threads decode.
        """
        import av

        self._patience.check()
        self.decoded += 1
        try:
            return self.stream.codec_context.decode(packet if packet.size else None)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, av.error.EOFError):  # the second empty packet
                return []
            if self._threaded:
                raise DamagedError from error
            self.damaged, self._reason = self.damaged + 1, self._reason or _reason(error)
            return []

    def seek(self, ticks: int) -> bool:
        """Seek to a key frame before a presentation time, and return whether FFmpeg reports success."""
        import av

        try:
            self.container.seek(ticks, stream=self.stream)
        except (av.FFmpegError, OverflowError):
            return False
        return True

    def check_damage(self) -> None:
        """Raise InputError if more packets are damaged than a file's end explains."""
        if self.damaged > max(1, _LOST * self.decoded):
            raise self.broken()

    def broken(self) -> InputError:
        """The error to raise for a file that cannot be decoded."""
        return _undecodable(self.path, self._reason or "it yields no frame")


@contextlib.contextmanager
def open_video(path: Path, patience: Patience, threads: bool = False) -> Iterator[OpenVideo]:
    """Open a file that exists; with `threads`, several frames are decoded in parallel.

    Raises:
        InputError: it is no video file, holds no pictures, or takes too long to read.
    """
    import av

    if not path.stat().st_size:  # files of the kernel have size 0, too, and reading some of them never ends
        raise InputError(f"video {path} is empty: record or copy it again")
    # Not `options`, which also apply to streams: PyAV writes past the end of their array if a container (FLV, MPEG-PS)
    # announces its streams only later.
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    name, limit = f"file:{os.path.abspath(path)}", _READ_SECONDS / 2
    try:
        container = av.open(name, container_options=options, timeout=limit, metadata_errors="replace")
    except av.error.ExitError as error:
        raise patience.over() from error
    except Exception as error:  # damaged files also raise ValueError, MemoryError, ...
        kind = _other_kind(path)
        if kind is None and getattr(error, "errno", None) != errno.EINVAL:
            raise _undecodable(path, _reason(error)) from error
        kind = kind or "a file of another format"  # FFmpeg found a format that is not among _FORMATS
        raise InputError(f"video {path} is {kind}, which is not read as a video: give a video file") from error
    with container:
        yield OpenVideo(path, container, patience, threads)


def _shown_stream(path: str | Path, container: Any) -> Any:
    """The stream that a player shows: the first that is marked as default, else the first; never a cover picture."""
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        raise InputError(f"video {path} contains no video stream: give a file that has one")
    stream = next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise InputError(f"video {path} uses a codec that FFmpeg cannot decode: convert it to H.264")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > _MOST_PIXELS:
        most = f"{_MOST_PIXELS:,} pixels"
        raise InputError(
            f"video {path} declares frames of {width}x{height}, more than {most}: convert it to a smaller size"
        )
    return stream


def _other_kind(path: Path) -> str | None:
    """The kind of a file that is no video, if its first bytes show it, else None."""
    with open(path, "rb") as file:
        start = file.read(2**12)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a picture"
    if start.lstrip().startswith((b"<", b"\xef\xbb\xbf<")) and any(tag in start.lower() for tag in _LISTS):
        return "a playlist"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for begins, kind in _OTHERS if text.startswith(begins)), None)


def _undecodable(path: str | Path, reason: str) -> InputError:
    return InputError(f"video {path} cannot be decoded ({reason}): give a whole video file")


def _reason(error: BaseException) -> str:
    """FFmpeg's own message, without the path."""
    return getattr(error, "strerror", None) or first_line(error)
