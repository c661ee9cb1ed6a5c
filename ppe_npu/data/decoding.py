"""Decodes the frames of a video file at given places of its index."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppe_npu.data.containers import DamagedError, OpenVideo, Patience, open_video
from ppe_npu.data.upright import upright
from ppe_npu.data.video_index import VideoIndex, packet_checksum
from ppe_npu.errors import InputError

_FAR = 100  # unwanted frames from which on a seek is worth it
_TRIES = 6  # failed seeks after which the file is decoded from its start
_LACKING = 0.1  # fraction of the frames that may be missing at the end

TimedFrames = Iterator[tuple[int, Any]]  # (presentation time in ticks, frame)


def shown_frames(path: Path, index: VideoIndex, places: Sequence[int]) -> Iterator[np.ndarray]:
    """Decode the frames that are shown at given places of a file, one after the other.

    Args:
        path: an existing file.
        index: the file's index.
        places: those of the frames, in ascending order, with repetitions if needed.

    Yields:
        The frame of each place, upright RGB, uint8 [H, W, 3]; in place of a damaged frame, the one shown before it.

    Raises:
        InputError: a file that breaks off before the last of the places, or is damaged.
    """
    patience = Patience(path, frames=len(index))
    for run in _runs(index, places):
        done = 0
        try:
            for frame in _decoded(path, index, run, patience, threads=True):
                yield frame
                done += 1
        except DamagedError:
            yield from _decoded(path, index, run[done:], patience, threads=False)


def _decoded(path: Path, index: VideoIndex, run: list[int], patience: Patience, threads: bool) -> Iterator[np.ndarray]:
    """shown_frames for places that are decoded in one pass."""
    wanted = index.ticks[run].tolist()
    with open_video(path, patience, threads) as video:
        frames = _sought(video, index, run[0])
        if frames is not None:
            yield from _pick(video, index, frames, wanted)
            return
    with open_video(path, patience, threads) as video:
        yield from _pick(video, index, _from_the_start(video, index), wanted)


def _runs(index: VideoIndex, places: Sequence[int]) -> list[list[int]]:
    """The places in runs; between two runs so many frames are unwanted that they are skipped by a seek."""
    runs: list[list[int]] = []
    for place in places:
        if runs and _key(index, place) - runs[-1][-1] < _FAR:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _key(index: VideoIndex, place: int) -> int:
    """The place of the key frame from which the frame at `place` is decoded; 0: the file's start."""
    before = np.searchsorted(index.keys, place, side="right")
    return int(index.keys[before - 1]) if before else 0


def _sought(video: OpenVideo, index: VideoIndex, place: int) -> TimedFrames | None:
    """Frames from a key frame on that is at or before a place; None: the file must be decoded from the start.

    In containers without an index of their own a seek may land anywhere, and in some of them times restart after it. So
    a key frame is trusted only if its time and checksum are among those found when the whole file was read.
    """
    if _key(index, place) < _FAR:
        return _from_the_start(video, index)
    newest = int(np.searchsorted(index.keys, place, side="right")) - 1
    known = set(zip(index.key_ticks[: newest + 1].tolist(), index.key_sums[: newest + 1].tolist()))
    earlier = (newest - back for back in (0, 1, 2, 4, 8, 16, 32) if back <= newest)
    times = (int(times[key]) for key in earlier for times in (index.key_ticks, index.key_stamps))
    for time in itertools.islice(dict.fromkeys(times), _TRIES):
        if not video.seek(time):
            continue
        packets = video.packets()
        key = next((packet for packet in packets if packet.size and packet.is_keyframe), None)
        if key is None or (key.pts, packet_checksum(key)) not in known:
            continue
        frames = _from_key(video, itertools.chain([key], packets), key.pts)
        first = next(frames, None)
        if first is not None and first[0] <= index.ticks[place]:
            return itertools.chain([first], frames)
    return None


def _from_key(video: OpenVideo, packets: Iterator[Any], begin: int) -> TimedFrames:
    """Frames from a key frame on, without those shown before it, which depend on frames that were not decoded."""
    for packet in packets:
        for frame in video.decode(packet):
            if frame.pts is not None and frame.pts >= begin:
                yield frame.pts, frame


def _from_the_start(video: OpenVideo, index: VideoIndex) -> TimedFrames:
    frames = (frame for packet in video.packets() for frame in video.decode(packet))
    if index.by_order:
        return zip(index.ticks.tolist(), frames)
    return ((frame.pts, frame) for frame in frames if frame.pts is not None)


def _pick(video: OpenVideo, index: VideoIndex, frames: TimedFrames, wanted: list[int]) -> Iterator[np.ndarray]:
    """The frame that is shown at each of the wanted times."""
    shown, begun, left = None, None, list(reversed(wanted))
    for time, frame in frames:
        while left and time > left[-1]:
            yield upright(frame if shown is None else shown, video.path)
            left.pop()
        shown, begun = frame, time
        while left and time == left[-1]:
            yield upright(frame, video.path)
            left.pop()
        if not left:
            break
    if shown is None:
        raise video.broken()
    if left:
        _check_end(video, index, begun, wanted[-1])
    video.check_damage()
    for _ in left:
        yield upright(shown, video.path)


def _check_end(video: OpenVideo, index: VideoIndex, last: int, wanted: int) -> None:
    """Raise InputError if the frames end long before the last one that is wanted."""
    found, asked = np.searchsorted(index.ticks, (last, wanted), side="right").tolist()
    if asked - found > max(1, _LACKING * asked):
        told = f"{found:,} of {len(index):,} frames"
        raise InputError(f"video {video.path} is cut off after {told}: give a whole video file")
