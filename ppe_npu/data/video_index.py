"""Which frames a video file shows, and when. This is found from its packets; only the first frame is decoded.

`ppe-npu data` uses this index to count frames, and decoding uses it to find them.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppe_npu.data.containers import OpenVideo, Patience, open_video
from ppe_npu.data.upright import upright
from ppe_npu.errors import InputError
from ppe_npu.utils.paths import existing_file

_WHOLE = 0.9  # fraction of the stated frames that must be there: containers round, a file that broke off lacks more
_DISTINCT = 0.9  # fraction of the frames that must have distinct times
_LONGEST = 2**53  # ticks from the first frame to the last
_ROUNDING = 1e-3  # seconds, which Matroska, FLV and others round times to
_EXACT = 1e-6  # seconds: more than the rounding of a quotient, and less than any tick
_SLACK = 5e-3  # seconds that a frame may begin late: half a tick of GIF
_KEPT = 64  # cached indices: that of a video of an hour takes 1 MB


@dataclass(frozen=True)
class VideoIndex:
    """The frames that a video file shows, in the order in which it shows them.

    A video with a constant rate shows frame n at n / fps seconds. Frames of any other video are numbered by an even
    grid of as many points as it has frames: number n means the frame that is shown at n / fps seconds.

    Attributes:
        ticks: int64 [N], ascending: when each frame is shown, in the stream's time base.
        tick: seconds per tick.
        fps: frames per second.
        height, width: the size of the first frame, upright, in pixels.
        by_order: whether frames can be identified only by the order in which they come out of the decoder.
        keys: places in `ticks`, ascending, of the key frames, at which decoding can begin.
        key_ticks, key_stamps: the keys' presentation and decoding times; they differ where frames are reordered.
        key_sums: checksums of the keys' packets, to recognize a key frame after a seek.
    """

    ticks: np.ndarray = field(repr=False)
    tick: float
    fps: float
    height: int
    width: int
    by_order: bool
    keys: np.ndarray = field(repr=False)
    key_ticks: np.ndarray = field(repr=False)
    key_stamps: np.ndarray = field(repr=False)
    key_sums: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.ticks)

    @functools.cached_property
    def seconds(self) -> np.ndarray:
        """float64 [N]: when each frame is shown, counted from the first one."""
        return (self.ticks - self.ticks[0]) * self.tick

    @functools.cached_property
    def even(self) -> bool:
        """Whether every frame is the one nearest to its point in an even grid."""
        return bool(np.abs(self.seconds * self.fps - np.arange(len(self))).max() < 0.5)

    def places(self, numbers: Sequence[int]) -> list[int]:
        """The places of frames that are given by number."""
        return list(numbers) if self.even else [self.place_at(number / self.fps) for number in numbers]

    def place_at(self, seconds: float) -> int:
        """The place of the frame shown at a time: the last that has begun, allowing for times rounded to ticks."""
        exact = self.tick * self.fps > 0.99  # a tick is a frame (AVI, numbered frames): nothing was rounded
        late = _EXACT if exact else min(self.tick / 2, _SLACK)
        begun = np.searchsorted(self.seconds, seconds + late, side="right")
        return int(np.clip(begun - 1, 0, len(self) - 1))


class _Packet(NamedTuple):
    shown: int | None  # presentation time
    stamp: int | None  # decoding time
    key: bool
    hidden: bool
    corrupt: bool
    sum: int  # checksum of a key frame's packet, else 0


def video_index(path: str | Path) -> VideoIndex:
    """The index of a file, which is cached until the file changes.

    Raises:
        InputError: no such file, no video file, no frames in it, or fewer than it states.
    """
    file = existing_file(path, "video")
    state = file.stat()
    return _read_index(str(file), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=_KEPT)
def _read_index(path: str, size: int, *_: int) -> VideoIndex:
    with open_video(Path(path), Patience(path, size=size)) as video:
        packets, first = _read_packets(video)
        return _index(video, packets, upright(first, path).shape[:2])


def _read_packets(video: OpenVideo) -> tuple[list[_Packet], Any]:
    """(all packets of the stream, in the order of decoding; the first frame that is shown)."""
    found: list[_Packet] = []
    first = None
    for packet in video.packets():
        if first is None:
            first = next(iter(video.decode(packet)), None)
        if packet.size:
            hidden = packet.is_discard or (video.stream.codec_context.name == "vp8" and _is_hidden_vp8(packet))
            key = packet.is_keyframe
            sum_ = packet_checksum(packet) if key else 0
            found.append(_Packet(packet.pts, packet.dts, key, hidden, packet.is_corrupt, sum_))
    if not found:
        raise InputError(f"video {video.path} contains no frames: record or convert it again")
    if first is None:
        raise video.broken()
    return found, first


def packet_checksum(packet: Any) -> int:
    """CRC-32 of a packet's bytes."""
    return zlib.crc32(packet)


def _is_hidden_vp8(packet: Any) -> bool:
    """Whether VP8's show_frame is 0 (RFC 6386, 9.1): the frame is only a reference for later ones, and not shown."""
    return not memoryview(packet)[0] & 0x10


def _index(video: OpenVideo, packets: list[_Packet], size: tuple[int, int]) -> VideoIndex:
    stream, tick = video.stream, float(video.stream.time_base)
    rates = [float(rate or 0) for rate in (stream.guessed_rate, stream.average_rate, stream.base_rate)]
    rates = [rate for rate in rates if rate > 0]  # in order of preference
    usable = _decodable(packets)
    ticks = _timeline(usable, in_packs=video.format == "mpeg")
    by_order = ticks is None or _order_is_unstated(usable, stream.codec_context.has_b_frames)
    if ticks is None:
        rate = next(iter(rates), 1.0)
        ticks, tick = np.arange(sum(not packet.hidden for packet in usable)), 1 / rate
    if not len(ticks):
        raise InputError(f"video {video.path} contains no frames: record or convert it again")
    fps = _rate(ticks, tick, rates)
    _check_whole(video, len(packets), (float(ticks[-1]) - float(ticks[0])) * tick + 1 / fps)
    keys = (
        [] if by_order else sorted({(p.shown, p.shown if p.stamp is None else p.stamp, p.sum) for p in usable if p.key})
    )
    columns = np.array(keys, dtype=np.int64).reshape(-1, 3).T
    return VideoIndex(ticks, tick, fps, *size, by_order, np.searchsorted(ticks, columns[0]), *columns)


def _decodable(packets: list[_Packet]) -> list[_Packet]:
    """The packets without a corrupt end and without those before the first key frame, in decoding order or in time."""
    packets = list(packets)
    while len(packets) > 1 and packets[-1].corrupt:
        packets.pop()
    start = next((place for place, packet in enumerate(packets) if packet.key), 0)
    first, *others = packets[start:]
    if not first.key or first.shown is None:
        return [first, *others]
    return [first, *(other for other in others if other.shown is None or other.shown >= first.shown)]


def _timeline(packets: list[_Packet], in_packs: bool) -> np.ndarray | None:
    """int64 [N], ascending: when the frames are shown; None if the stated times do not form one timeline.

    in_packs: whether only one time is stated for two frames that begin in one pack, before or after them (MPEG-PS).
    """
    shown = [packet.shown for packet in packets]
    if None in shown:
        shown = [packet.stamp for packet in packets]
    stamps = [packet.stamp for packet in packets if packet.stamp is not None]
    if None in shown or _falls(stamps):
        return None
    seen = [time for time, packet in zip(shown, packets) if not packet.hidden]
    distinct = sorted(set(seen))
    least = len(seen) if in_packs else _DISTINCT * len(seen)
    if len(distinct) < least or (distinct and distinct[-1] - distinct[0] > _LONGEST):
        return None
    return np.array(distinct, dtype=np.int64)


def _order_is_unstated(packets: list[_Packet], reordered: int) -> bool:
    """Whether the decoder reorders frames but the packets' times do not show it, as in AVI, which has no such times."""
    shown = [packet.shown for packet in packets]
    return None in shown or (bool(reordered) and not _falls(shown))


def _falls(times: list[int]) -> bool:
    return any(after < before for before, after in itertools.pairwise(times))


def _rate(ticks: np.ndarray, tick: float, stated: list[float]) -> float:
    """Frames per second: a stated rate that all times agree with, else the mean rate of the times."""
    if len(ticks) == 1:
        return stated[0] if stated else 1.0
    seconds, numbers = (ticks - ticks[0]) * tick, np.arange(len(ticks))
    for rate in stated:
        if (
            np.abs(seconds - numbers / rate).max() <= max(1.5 * tick, _ROUNDING)
            and np.rint(seconds[-1] * rate) == numbers[-1]
        ):
            return rate
    return float(numbers[-1] / seconds[-1])


def _check_whole(video: OpenVideo, found: int, seconds: float) -> None:
    """Raise InputError if both frames and seconds are fewer than stated: an edit list may leave out frames alone."""
    stream = video.stream
    lacks = found < min(_WHOLE * stream.frames, stream.frames - 1)
    stated = None if stream.duration is None else float(stream.duration * stream.time_base)
    if lacks and (stated is None or seconds < _WHOLE * stated):
        told = f"{found:,} of {stream.frames:,} frames"
        raise InputError(f"video {video.path} is cut off after {told}: give a whole video file")
