"""Which frames are read from video files: those that a player shows, in every container, at every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from video_files import copy_packets, number_of, numbers, write_video

from ppe_npu.data import decoding
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.video_index import video_index
from ppe_npu.data.videos import VideoFrame, VideoHeader, load_video, planned_video, video_header

FRAMES = 40
ALL = VideoSampling(nframes=FRAMES)
OPEN = {"x264-params": "open-gop=1:bframes=3:b-adapt=0"}
OPEN_HEVC = {"x265-params": "log-level=none:open-gop=1:keyint=10:min-keyint=10:scenecut=0"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16"}  # makes frames that are never shown
CONTAINERS = {  # file name -> codec, options
    "a.mp4": ("libx264", {}), "open.mp4": ("libx264", OPEN), "hevc.mp4": ("libx265", OPEN_HEVC),
    "a.mov": ("libx264", {}), "a.mkv": ("libx264", {}), "ffv1.mkv": ("ffv1", {}),
    "a.ts": ("libx264", {}), "open.ts": ("libx264", OPEN), "hevc.ts": ("libx265", OPEN_HEVC),
    "refresh.ts": ("libx264", {"x264-params": "intra-refresh=1:bframes=0"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}), "a.mpg": ("mpeg2video", {"bf": "2"}),
    "one.mpg": ("mpeg1video", {"bf": "2"}), "a.m2v": ("mpeg2video", {"bf": "2"}),
    "a.h264": ("libx264", {}), "a.hevc": ("libx265", {}), "a.mjpeg": ("mjpeg", {}),
    "h264.avi": ("libx264", {}), "mpeg4.avi": ("mpeg4", {"bf": "2"}), "mjpeg.avi": ("mjpeg", {}),
    "a.flv": ("libx264", {}), "a.webm": ("libvpx", HIDDEN), "vp8.ivf": ("libvpx", HIDDEN),
    "vp9.webm": ("libvpx-vp9", HIDDEN), "a.wmv": ("wmv2", {}), "a.nut": ("ffv1", {}),
    "a.gif": ("gif", {}), "a.apng": ("apng", {}),
}  # fmt: skip
RATE = 25  # the rate that a raw stream has if it states none


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def sample(folder):
    """sample(name) -> path of 40 numbered frames in that container, each made once."""
    made: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in made:
            codec, options = CONTAINERS[name]
            made[name] = write_video(folder / name, codec, FRAMES, RATE, options=options)
        return made[name]

    return get


# -- constant rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [100, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.half
def test_every_container_gives_the_same_frames(sample, monkeypatch, name, far):
    """In the whole, in late clips and at single times; with far = 1, seeks are made wherever one can help."""
    monkeypatch.setattr(decoding, "_FAR", far)
    path = sample(name)
    header = video_header(path)
    assert header == VideoHeader(FRAMES, RATE, 48, 64)
    video = load_video(path, ALL)
    assert numbers(video) == list(range(FRAMES))
    for rule in (ALL, VideoSampling(fps=10), VideoSampling(nframes=6, middles=True)):
        planned, read = planned_video(header, path, rule, 2), load_video(path, rule)
        assert (planned.indices, planned.fps, planned.frames.shape) == (read.indices, read.fps, read.frames.shape)
    for first in (3, 12, 19, 20, 21, 33):  # before, at and after key frames
        clip = VideoSampling(nframes=4, start=first / RATE, end=(first + 5) / RATE)
        assert numbers(load_video(path, clip)) == [first, first + 2, first + 3, first + 5]
    shown = [number_of(np.asarray(VideoFrame(path, (place + 0.5) / RATE).load())) for place in (0, 9, 18, 31, 39, 80)]
    assert shown == [0, 9, 18, 31, 39, 39]


@pytest.mark.parametrize("name", ["a.mp4", "open.mp4", "hevc.mp4", "a.mkv", "a.flv", "vp9.webm", "mpeg4.avi"])
def test_late_clips_are_not_decoded_from_the_start(sample, monkeypatch, name):
    monkeypatch.setattr(decoding, "_FAR", 10)
    monkeypatch.setattr(decoding, "_from_the_start", None)
    assert numbers(load_video(sample(name), VideoSampling(nframes=4, start=1.2, end=1.4))) == [30, 32, 33, 35]


def test_what_lies_between_wanted_frames_is_passed_over(folder, monkeypatch):
    path = write_video(folder / "long.mp4", frames=200, keys=10)
    decoded, decode = [], decoding.OpenVideo.decode
    monkeypatch.setattr(decoding.OpenVideo, "decode", lambda self, packet: decoded.append(1) or decode(self, packet))
    monkeypatch.setattr(decoding, "_FAR", 30)
    assert numbers(load_video(path, VideoSampling(nframes=4))) == [0, 66, 133, 199]
    assert len(decoded) < 100


@pytest.mark.parametrize("landing", ["behind", "refused", "renumbered"])
def test_a_seek_that_lands_elsewhere_is_not_believed(sample, monkeypatch, landing):
    """As in containers without an index: behind the wanted frame, nowhere, or with numbers that start again."""
    seek = decoding.OpenVideo.seek

    def mislead(self, ticks: int) -> bool:
        if landing == "refused":
            return False
        done = seek(self, 2**40 if landing == "behind" else ticks)
        if landing == "renumbered":
            packets = self.packets

            def late():
                for packet in packets():
                    packet.pts = None if packet.pts is None else packet.pts - 512
                    yield packet

            self.packets = late
        return done

    monkeypatch.setattr(decoding, "_FAR", 10)
    monkeypatch.setattr(decoding.OpenVideo, "seek", mislead)
    assert numbers(load_video(sample("a.mp4"), VideoSampling(nframes=4, start=1.0, end=1.2))) == [25, 27, 28, 30]


# -- other times -------------------------------------------------------------------------------------------------------

# 20 frames in the first second, then one per second, in milliseconds: like a recording of a screen.
UNEVEN = [*range(0, 1000, 50), *range(1000, 21000, 1000)]
LOSSLESS = {"a.mp4": "libx264", "a.mkv": "libx264", "a.ts": "libx264", "a.flv": "libx264", "a.webm": "libvpx",
            "b.mp4": "mpeg4", "b.mkv": "ffv1"}  # fmt: skip


@pytest.mark.parametrize("far", [100, 1])
@pytest.mark.parametrize("name", LOSSLESS)
def test_frames_of_no_constant_rate_are_those_shown_at_even_times(tmp_path, monkeypatch, name, far):
    monkeypatch.setattr(decoding, "_FAR", far)
    path = write_video(tmp_path / name, LOSSLESS[name], FRAMES, 20, times=UNEVEN)
    fps = (FRAMES - 1) / 20
    header = video_header(path)
    assert header.frames == FRAMES
    assert abs(header.fps - fps) / fps <= 1 / 1000  # a file counts time in thousandths of a second

    def shown(seconds: float) -> int:
        return max(number for number, time in enumerate(UNEVEN) if time <= seconds * 1000 + 1)

    for start, end in ((None, None), (0.0, 2.0), (5.0, 15.0), (17.0, 19.0)):
        video = load_video(path, VideoSampling(nframes=4, start=start, end=end))
        begin = round((start or 0) * fps)
        assert numbers(video) == [shown((begin + index) / fps) for index in video.indices]
        taken = [(begin + index) / fps for index in video.indices]
        assert taken[0] == pytest.approx(start or 0, abs=0.5 / fps)
        assert taken[-1] == pytest.approx(20 if end is None else end, abs=0.5 / fps)
    for seconds in (0.0, 0.047, 0.05, 0.5, 0.99, 1.0, 7.5, 20.0, 99.0):
        assert number_of(np.asarray(VideoFrame(path, seconds).load())) == shown(seconds)


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_rounded_times_are_a_constant_rate(tmp_path, rate):
    """Matroska and FLV round to milliseconds: frame n is number n all the same, and the rate is the stated one."""
    for name in ("a.mp4", "a.mkv", "a.flv"):
        path = write_video(tmp_path / name, frames=50, rate=rate)
        assert video_header(path) == VideoHeader(50, rate, 48, 64)
        assert numbers(load_video(path, VideoSampling(nframes=50))) == list(range(50))
        third = VideoFrame(path, 2 / rate).load()
        assert number_of(np.asarray(third)) == 2, "the frame that begins then, though its time was rounded up"


@pytest.mark.parametrize(
    ("name", "shift"),
    [("a.mp4", 7000), ("a.mkv", 7000), ("a.ts", 7000), ("a.flv", 7000), ("a.mkv", -300), ("a.nut", -300)],
)
def test_time_begins_with_the_first_frame(tmp_path, name, shift):
    codec = "ffv1" if name == "a.nut" else "libx264"
    path = write_video(tmp_path / name, codec, times=[100 * number + shift for number in range(FRAMES)])
    assert video_header(path) == VideoHeader(FRAMES, 10.0, 48, 64)
    assert numbers(load_video(path, VideoSampling(nframes=4, start=1.0, end=1.5))) == [10, 12, 13, 15]
    assert number_of(np.asarray(VideoFrame(path, 2.05).load())) == 20


def test_joined_streams_are_one(tmp_path):
    """The second stream's times start again, so frames are numbered by their order."""
    first = write_video(tmp_path / "first.ts")
    second = write_video(tmp_path / "second.ts", first=FRAMES, times=[111 * number for number in range(FRAMES)])
    (tmp_path / "joined.ts").write_bytes(Path(first).read_bytes() + Path(second).read_bytes())
    assert video_header(tmp_path / "joined.ts").frames == 2 * FRAMES
    video = load_video(tmp_path / "joined.ts", VideoSampling(nframes=2 * FRAMES))
    assert numbers(video) == list(range(2 * FRAMES))


def test_frames_that_nobody_sees_do_not_count(tmp_path):
    """VP8 stores them as packets of their own, with show_frame = 0."""
    import av

    with av.open(write_video(tmp_path / "a.webm", "libvpx")) as old, av.open(str(tmp_path / "b.webm"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size:
                data = bytes(packet)
                copy = av.Packet(bytes([data[0] & ~0x10]) + data[1:] if number == 5 else data)
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                new.mux(copy)
    assert video_header(tmp_path / "b.webm").frames == FRAMES - 1
    shown = [number_of(np.asarray(VideoFrame(str(tmp_path / "b.webm"), place / 10).load())) for place in range(4, 8)]
    assert shown == [4, 4, 6, 7]


# -- cut files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cut(tmp_path):
    """cut(hidden) -> path of 40 frames at 10 per second; an edit list hides the first `hidden`, as `ffmpeg -c copy`
    cuts."""

    def write(hidden: int) -> str:
        source = write_video(tmp_path / "long.mp4")
        ticks = 10240 // 10 * hidden
        options = {"avoid_negative_ts": "disabled"}
        return copy_packets(source, tmp_path / f"cut{hidden}.mp4", shift=-ticks, container_options=options)

    return write


@pytest.mark.parametrize("hidden", [0, 3, 17, 25])
def test_frames_that_an_edit_list_hides_do_not_count(cut, hidden):
    path = cut(hidden)
    assert video_header(path) == VideoHeader(FRAMES - hidden, 10.0, 48, 64)
    video = load_video(path, ALL)
    even = (FRAMES - hidden) // 2 * 2
    expected = np.linspace(0, FRAMES - hidden - 1, even).round().astype(int) + hidden
    assert numbers(video) == expected.tolist()
    assert number_of(np.asarray(VideoFrame(path, 1.05).load())) == hidden + 10


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
@pytest.mark.parametrize("begin", [1, 4, 13])
def test_a_recording_that_begins_amid_a_group_begins_with_its_first_key_frame(tmp_path, codec, begin):
    """Its first packets cannot be decoded without what came before them."""
    import av

    options = {"libx264": OPEN, "libx265": OPEN_HEVC}.get(codec)
    source = write_video(tmp_path / "whole.ts", codec, rate=25, options=options)
    with av.open(source) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    key = next(packet.pts for packet in packets[begin:] if packet.is_keyframe)
    first = sum(packet.pts < key for packet in packets)
    counted = iter(range(len(packets)))
    path = copy_packets(source, tmp_path / "late.ts", wanted=lambda _: next(counted) >= begin)
    assert video_header(path) == VideoHeader(FRAMES - first, 25.0, 48, 64)
    shown = numbers(load_video(path, ALL))
    assert (shown[0], shown[-1]) == (first, FRAMES - 1)


# -- the index ---------------------------------------------------------------------------------------------------------


def test_an_index_is_kept_until_its_file_changes(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", frames=10)
    index = video_index(path)
    assert video_index(path) is index
    write_video(tmp_path / "a.mp4", frames=12)
    assert len(video_index(path)) == 12
