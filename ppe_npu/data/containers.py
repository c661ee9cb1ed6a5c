"""Video files as FFmpeg opens them, by PyAV: one file and no other, of a known format, within a time.

FFmpeg opens much that is no video file: playlists and lists of files (of which some never end), patterns of names,
addresses, and names with a colon as protocols. So it is told the formats that it may find and that a name is a file's.
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

_READ_SECONDS = 20.0  # for which a file may keep a reader waiting; a large file gets more
_PER_BYTE = 1e-7  # seconds more: disks that give less than 10 MB a second are given up
_PER_FRAME = 0.1  # seconds more for a frame that is decoded: 8K on one core takes as long
_MOST_PIXELS = 2**26  # of a frame: twice 8K
_THREADED = 2**24  # pixels of a frame, above which frames are not decoded side by side: a thread holds some of them
_LOST = 0.1  # share of the packets that may be damaged

# Demuxers (as FFmpeg names them) of single files. Those of sound are here to say that there are no pictures.
_VIDEO = """mov matroska avi flv live_flv mpegts mpeg mpegvideo h264 hevc vvc obu ivf m4v h263 h261 vc1 dirac cavsvideo
    avs2 avs3 mjpeg mjpeg_2000 mpjpeg ogg asf asf_o gif apng nut mxf gxf dv yuv4mpegpipe rm wtv nsv nuv pva ty dhav roq
    smk bink swf flic"""
_SOUND = "mp3 wav w64 flac aac ac3 eac3 aiff amr ape caf tta wv"
_FORMATS = ",".join(f"{_VIDEO} {_SOUND}".split())
_OTHERS = (  # what else FFmpeg would open, by how it begins
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
    """A limit on the seconds that a file is read for, from now on.

    Args:
        path: of the file.
        size: bytes that are read.
        frames: that are decoded.
    """

    def __init__(self, path: str | Path, size: int = 0, frames: int = 0) -> None:
        # One call of FFmpeg, which cannot be looked into, may last the other half.
        self.path, self.seconds = path, _READ_SECONDS / 2 + _PER_BYTE * size + _PER_FRAME * frames
        self._end = time.monotonic() + self.seconds

    def check(self) -> None:
        """Raise InputError when it is over."""
        if time.monotonic() > self._end:
            raise self.over()

    def over(self) -> InputError:
        """What is raised."""
        limit = f"{self.seconds + _READ_SECONDS / 2:.0f} s"
        return InputError(f"video {self.path} cannot be read within {limit}: convert it, or copy it to a faster disk")


class DamagedError(Exception):
    """A packet cannot be decoded, and threads hold what comes before it: decode again without them."""


class OpenVideo:
    """A video file that was opened.

    Attributes:
        container, stream: PyAV's; the stream that a player shows.
        format: the container's name in FFmpeg.
        damaged: packets that could not be decoded. decoded: all that were tried.
    """

    def __init__(self, path: str | Path, container: Any, patience: Patience, threads: bool) -> None:
        import av

        self.path, self.container, self._patience = path, container, patience
        self.format = container.format.name.split(",")[0]
        self.stream = _shown_stream(path, container)
        self.damaged = self.decoded = 0
        self._reason = ""
        self.stream.codec_context.options = {"max_pixels": str(_MOST_PIXELS)}
        # A thread that waits for Python, to log there what FFmpeg says, is waited for when a file is closed: for ever.
        listened = av.logging.get_level() is not None
        small = self.stream.width * self.stream.height <= _THREADED
        self._threaded = threads and small and not listened
        if self._threaded:
            self.stream.thread_type = "AUTO"

    def packets(self) -> Iterator[Any]:
        """The stream's packets from where it stands, then an empty one; the end is where a file cannot be read on."""
        import av

        source, done = self.container.demux(self.stream), False
        while not done:
            self._patience.check()
            try:
                packet = next(source, None)
            except av.error.ExitError as error:  # a call that lasted too long
                raise self._patience.over() from error
            except Exception as error:  # it breaks off; where streams come and go, PyAV raises IndexError, too
                packet, self._reason = None, self._reason or _reason(error)
            done = packet is None
            yield av.Packet() if done else packet

    def decode(self, packet: Any) -> list[Any]:
        """The frames that come out when a packet of packets() is put in; none of a damaged one.

        Raises:
            InputError: the time is over.
            DamagedError: only where frames are decoded by several threads.
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
        """Go to a key frame before a presentation time; whether FFmpeg says that it is there."""
        import av

        try:
            self.container.seek(ticks, stream=self.stream)
        except (av.FFmpegError, OverflowError):
            return False
        return True

    def check_damage(self) -> None:
        """Raise InputError where more is damaged than a file's end."""
        if self.damaged > max(1, _LOST * self.decoded):
            raise self.broken()

    def broken(self) -> InputError:
        """What is raised of a file that cannot be decoded."""
        return _undecodable(self.path, self._reason or "no frame comes out")


@contextlib.contextmanager
def open_video(path: Path, patience: Patience, threads: bool = False) -> Iterator[OpenVideo]:
    """Open a file that exists; with `threads`, several frames are decoded side by side.

    Raises:
        InputError: it is no video file, holds no pictures, or keeps its reader waiting.
    """
    import av

    if not path.stat().st_size:  # so are the kernel's own files, some of which wait for ever
        raise InputError(f"video {path} is empty: record or copy it again")
    # Not `options`, which are the streams', too: PyAV writes behind their array where a container (FLV, MPEG-PS) names
    # its streams only as they come.
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    name, limit = f"file:{os.path.abspath(path)}", _READ_SECONDS / 2
    try:
        container = av.open(name, container_options=options, timeout=limit, metadata_errors="replace")
    except av.error.ExitError as error:
        raise patience.over() from error
    except Exception as error:  # of damaged files not all is an av.FFmpegError: ValueError, MemoryError, ...
        kind = _other_kind(path)
        if kind is None and getattr(error, "errno", None) != errno.EINVAL:
            raise _undecodable(path, _reason(error)) from error
        kind = kind or "in no video format"  # FFmpeg found one that it was not told
        raise InputError(f"video {path} is {kind} and is not read as a video: give a video file") from error
    with container:
        yield OpenVideo(path, container, patience, threads)


def _shown_stream(path: str | Path, container: Any) -> Any:
    """The stream that a player shows: the first that is marked as default, else the first; no cover picture."""
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        raise InputError(f"video {path} holds no video stream: give a file with pictures in it")
    stream = next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise InputError(f"video {path} is coded in a way that FFmpeg cannot decode: convert it to H.264")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > _MOST_PIXELS:
        most = f"{_MOST_PIXELS:,} pixels"
        raise InputError(
            f"video {path} states frames of {width}x{height}, more than {most}: convert it to smaller ones"
        )
    return stream


def _other_kind(path: Path) -> str | None:
    """What a file is that is no video, where it says so."""
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
    """FFmpeg's own words, without the path again."""
    return getattr(error, "strerror", None) or first_line(error)
