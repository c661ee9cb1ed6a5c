"""Files that are no videos, or damaged ones: refused in one line, soon, and with nothing else opened."""

from __future__ import annotations

import os
import struct
import time
import weakref
from pathlib import Path

import draws
import numpy as np
import pytest
import torch
from bounds import bounded
from PIL import Image
from video_files import number_of, numbered, numbers, write_video

from ppe_npu.data import containers, videos
from ppe_npu.data.inputs import process_visuals
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.video_index import video_index
from ppe_npu.data.videos import VideoFrame, load_video, video_header
from ppe_npu.errors import InputError

READERS = (video_header, load_video, lambda path: VideoFrame(str(path), 0.0).load())


def refusals(path) -> set[str]:
    """The errors of all ways to read a file: one line each, after little work."""
    said = set()
    for read in READERS:
        started = time.process_time()
        with pytest.raises(InputError) as error:
            read(path)
        assert time.process_time() - started < 5
        assert "\n" not in str(error.value)
        said.add(str(error.value))
    return said


# -- no video file -----------------------------------------------------------------------------------------------------

PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2,\nseg.ts\n"
OTHERS = {
    "live.m3u8": (PLAYLIST, "a playlist"),
    "live.mp4": (PLAYLIST, "a playlist"),
    "long.m3u8": (PLAYLIST + "#EXTINF:2,\nseg.ts\n" * 200_000 + "#EXT-X-ENDLIST\n", "a playlist"),
    "list.mp4": ("ffconcat version 1.0\n" + "file seg.ts\n" * 12, "a list of files"),
    "dash.mp4": ('<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', "a playlist"),
    "plain.txt": ("file 'seg.ts'\nfile 'seg.ts'\n", "a list of files"),
    "songs.xspf": ('<?xml version="1.0"?>\n<playlist version="1"></playlist>', "a playlist"),
    "old.asx": ("<ASX version='3.0'><Entry><Ref href='seg.ts'/></Entry></ASX>", "a playlist"),
    "smooth.ism": ('\ufeff<SmoothStreamingMedia MajorVersion="2"/>', "a playlist"),
    "pointer.mp4": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
    "lost.mp4": ("<!DOCTYPE html><html>404</html>", "a web page"),
    "call.sdp": ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "a stream"),
    "chapters.mp4": (";FFMETADATA1\ntitle=x\n", "a list of chapters"),
    "words.srt": ("1\n00:00:01,000 --> 00:00:02,000\nhello\n", "a file of another format"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_lists_of_files_are_refused_by_name(tmp_path, name):
    text, kind = OTHERS[name]
    write_video(tmp_path / "seg.ts", frames=8)
    (tmp_path / name).write_text(text)
    said = refusals(tmp_path / name)
    assert len(said) == 1
    assert name in said.copy().pop()
    assert kind in said.pop()


def test_a_list_of_lists_is_not_followed(tmp_path):
    """Twelve times twelve ... : six small files would name three million parts."""
    write_video(tmp_path / "c0.mp4", frames=8)
    for depth in range(1, 7):
        (tmp_path / f"c{depth}.mp4").write_text("ffconcat version 1.0\n" + f"file c{depth - 1}.mp4\n" * 12)
    assert "a list of files" in refusals(tmp_path / "c6.mp4").pop()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp"])
def test_a_picture_is_no_video(tmp_path, kind):
    Image.new("RGB", (64, 48)).save(tmp_path / f"%03d.{kind}")
    assert "is a picture" in refusals(tmp_path / f"%03d.{kind}").pop()


def test_pipes_devices_and_the_kernels_files_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "empty.mp4").touch()
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero"), tmp_path / "empty.mp4", Path("/proc/self/mem")):
        assert len(refusals(path)) == 1


def test_sound_is_no_video(tmp_path):
    import av

    for name, cover in (("a.m4a", False), ("a.mp3", True)):
        with av.open(str(tmp_path / name), "w") as file:
            sound = file.add_stream("libmp3lame" if cover else "aac", rate=44100)
            if cover:
                picture = file.add_stream("mjpeg", rate=1)
                picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            for number in range(10):
                frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
                frame.rate, frame.pts = 44100, number * 1152
                file.mux(sound.encode(frame))
            if cover:
                file.mux(picture.encode(av.VideoFrame.from_ndarray(numbered(5), format="rgb24")))
            file.mux(sound.encode())
        assert "contains no video stream: give a file that has one" in refusals(tmp_path / name).pop()


def test_of_several_streams_the_first_is_shown(tmp_path):
    import av

    with av.open(str(tmp_path / "two.mkv"), "w") as file:
        streams = [file.add_stream("libx264", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            for place, stream in enumerate(streams):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number + 100 * place), format="rgb24")))
        for stream in streams:
            file.mux(stream.encode())
    assert numbers(load_video(tmp_path / "two.mkv", VideoSampling(nframes=10))) == list(range(10))


NAMES = ["10:30.mp4", "concat:x.mp4", "http:x.mp4", "file:x.mp4", "-x.mp4", "%d.mp4", "v%03d.mp4", "pipe:0", "a|b.mp4",
         "a?b#c.mp4", "data:x", "subfile,,start,0,end,0,,:x.mp4", "x*[1].mp4"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(write_video("plain.mp4", frames=4)).rename(tmp_path / name)
    for path in (name, f"./{name}", tmp_path / name):
        assert numbers(load_video(path)) == [0, 1, 2, 3]
        assert video_header(path).frames == 4
    assert number_of(np.asarray(VideoFrame(name, 0.1).load())) == 1


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.flv", "a.webm", "a.h264", "a.gif", "a.nut", "fragments.mp4"])
@pytest.mark.parametrize("share", [0.6, 0.97])
def test_of_a_recording_that_broke_off_all_is_read_that_is_there(tmp_path, name, share):
    codec = {"webm": "libvpx", "gif": "gif", "nut": "ffv1"}.get(name.split(".")[1], "libx264")
    fragments = {"movflags": "frag_keyframe+empty_moov"} if name == "fragments.mp4" else None
    whole = Path(write_video(tmp_path / name, codec, container_options=fragments)).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    header = video_header(tmp_path / name)
    video = load_video(tmp_path / name, VideoSampling(nframes=header.frames))
    assert len(video.frames) == max(header.frames // 2 * 2, 1)
    there = 40 * share if name != "fragments.mp4" else 40 * share - 10
    assert there / 2.5 - 5 <= header.frames <= 40
    shown = numbers(video)[:-3]
    assert shown == sorted(shown), "in order, and no frame of another"


def test_more_than_a_damaged_end_is_refused(tmp_path):
    """Zeros over the last quarter of the bytes, like a download that was cut off and padded to its full size."""
    whole = bytearray(Path(write_video(tmp_path / "a.mp4", container_options={"movflags": "faststart"})).read_bytes())
    whole[-len(whole) // 4 :] = bytes(-(-len(whole) // 4))
    (tmp_path / "a.mp4").write_bytes(whole)
    with pytest.raises(InputError, match=r"a\.mp4 is cut off after [123]\d of 40 frames"):
        load_video(tmp_path / "a.mp4", VideoSampling(nframes=40))


def test_a_stated_number_of_frames_is_not_believed(tmp_path):
    whole = bytearray(Path(write_video(tmp_path / "a.avi", "mpeg4")).read_bytes())
    struct.pack_into("<I", whole, whole.index(b"avih") + 24, 2**31 - 5)
    struct.pack_into("<I", whole, whole.index(b"strh") + 40, 2**31 - 5)
    (tmp_path / "a.avi").write_bytes(whole)
    assert (
        refusals(tmp_path / "a.avi")
        .pop()
        .endswith("is cut off after 40 of 2,147,483,643 frames: give a whole video file")
    )


def test_frames_that_change_their_size(tmp_path):
    lying = write_video(tmp_path / "lying.ts", "mpeg2video", rate=25)
    upright = write_video(tmp_path / "upright.ts", "mpeg2video", rate=25, draw=lambda n: numbered(n, 48, 64))
    (tmp_path / "a.ts").write_bytes(Path(lying).read_bytes() + Path(upright).read_bytes())
    for sampling in (VideoSampling(nframes=8), VideoSampling(nframes=4, start=2.0)):
        with pytest.raises(InputError, match=r"a\.ts changes its frame size midway"):
            load_video(tmp_path / "a.ts", sampling)


def test_frames_too_large_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(containers, "_MOST_PIXELS", 64 * 48 - 1)
    assert "declares frames of 64x48, more than 3,071 pixels" in refusals(path).pop()


def test_threads_lose_nothing_before_a_damaged_packet(tmp_path, monkeypatch):
    """From the frames around it, each decoder makes what it can."""
    whole = Path(write_video(tmp_path / "a.h264")).read_bytes()
    (tmp_path / "a.h264").write_bytes(whole[: int(len(whole) * 0.97)])
    threaded = load_video(tmp_path / "a.h264", VideoSampling(nframes=40), multiple=1)
    assert numbers(threaded)[:34] == list(range(34))
    monkeypatch.setattr(containers, "_THREADED", 0)
    alone = load_video(tmp_path / "a.h264", VideoSampling(nframes=40), multiple=1)
    assert torch.equal(alone.frames[:34], threaded.frames[:34])


@pytest.mark.ci
def test_who_listens_to_ffmpeg_by_python_does_not_make_a_reader_wait_for_ever(tmp_path):
    """Older torchvision listens from its import on. A frame's thread with a message waited for Python's lock, which the
    thread that closed the file held: one of 150 short reads of this file never ended."""
    import av

    path = Path(write_video(tmp_path / "a.mkv", "libx265", keys=12))
    try:
        for level, kind in ((None, "AUTO"), (av.logging.ERROR, "SLICE"), (av.logging.PANIC, "SLICE")):
            av.logging.set_level(level)
            with containers.open_video(path, containers.Patience(path), threads=True) as video:
                assert video.stream.thread_type.name == kind
            for _ in range(30):
                assert numbers(load_video(path, VideoSampling(nframes=3, end=0.3), multiple=1)) == [0, 2, 3]
    finally:
        av.logging.set_level(None)


def test_nothing_is_printed(tmp_path, capfd):
    whole = Path(write_video(tmp_path / "a.ts")).read_bytes()
    (tmp_path / "b.ts").write_bytes(whole[1000:6000] + bytes(500) + whole[6500:])
    (tmp_path / "c.mp4").write_bytes(whole[1000:3000][::-1])
    for name in ("a.ts", "b.ts", "c.mp4"):
        try:
            load_video(tmp_path / name)
        except InputError:
            continue
    capfd.readouterr()
    for name in ("a.ts", "b.ts", "c.mp4"):
        (tmp_path / name).touch()  # its index is read again
        try:
            load_video(tmp_path / name)
        except InputError:
            continue
    assert capfd.readouterr() == ("", "")


# -- time and memory ---------------------------------------------------------------------------------------------------


def test_a_read_ends_when_its_time_is_over(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    index = video_index(path)
    now = iter(range(0, 10**9, 5))  # each look at the clock is five seconds later
    monkeypatch.setattr(containers.time, "monotonic", lambda: next(now))
    with pytest.raises(InputError, match=r"a\.mp4 cannot be read within 24 s: convert it"):  # 40 frames give 4
        load_video(path, VideoSampling(nframes=40))
    write_video(tmp_path / "b.mp4")
    with pytest.raises(InputError, match=r"b\.mp4 cannot be read within 20 s"):
        video_header(tmp_path / "b.mp4")
    assert index.fps == 10


def test_one_large_frame_is_held_at_a_time(tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    shown = videos.shown_frames

    def watched(*args):
        for frame in shown(*args):
            assert sum(ref() is not None for ref in alive) <= 1, "the one before may still be in use"
            alive.append(weakref.ref(frame))
            yield frame

    monkeypatch.setattr(videos, "shown_frames", watched)

    def halved(frames: int, height: int, width: int):
        assert (frames, height, width) == (12, 48, 64)
        return lambda frame: frame[:, ::2, ::2]

    path = write_video(tmp_path / "a.mkv", "ffv1")
    video = load_video(path, VideoSampling(nframes=12), resizing=halved)
    assert len(alive) == 12
    assert torch.equal(video.frames, load_video(path, VideoSampling(nframes=12)).frames[..., ::2, ::2])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("rule", [{"max_pixels": 60 * 60}, {"min_pixels": 200 * 200, "max_pixels": 300 * 300}, {}])
def test_frames_resized_one_by_one_are_the_processors_own(tmp_path, spelling_processors, family, rule):
    noise = np.random.default_rng(0).integers(0, 256, (70, 106, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mkv", "ffv1", 7, draw=lambda number: np.roll(noise, 9 * number, axis=1))
    processor, sampling = spelling_processors[family], VideoSampling(nframes=7, **rule)
    (one, said), (all_, written) = (
        process_visuals(processor, [], [video], sampling) for video in (path, load_video(path, sampling))
    )
    assert one.keys() == all_.keys()
    assert all(torch.equal(one[key], all_[key]) for key in one)
    assert torch.equal(said["video"][0], written["video"][0])


def test_folders_of_frames_are_resized_as_they_are_read(tmp_path, spelling_processors):
    for number in range(8):
        Image.fromarray(numbered(number, 96, 80)).save(tmp_path / f"{number}.png")
    sampling = VideoSampling(nframes=6, frame_rate=4.0, max_pixels=60 * 60)
    processor = spelling_processors["qwen3_vl"]
    one, all_ = (process_visuals(processor, [], [v], sampling)[0] for v in (tmp_path, load_video(tmp_path, sampling)))
    assert all(torch.equal(one[key], all_[key]) for key in one)


# -- anything at all ---------------------------------------------------------------------------------------------------

KINDS = {
    "a.mp4": "libx264", "a.mkv": "libx264", "a.ts": "libx264", "a.avi": "mpeg4", "a.flv": "libx264", "a.webm": "libvpx",
    "a.mpg": "mpeg2video", "a.gif": "gif", "a.h264": "libx264",
}  # fmt: skip


def _read_mutations(folder: Path, rounds: int) -> None:
    """Reads files with some bytes changed, mostly in headers, or a part left out: frames, or one InputError."""
    random = np.random.default_rng(draws.SEED)
    whole = [Path(write_video(folder / name, codec)).read_bytes() for name, codec in KINDS.items()]
    outcomes, said = {True: 0, False: 0}, set()
    for _ in range(rounds):
        for data in map(bytearray, whole):
            if random.random() < 0.25:
                first, last = sorted(random.integers(0, len(data), 2))
                del data[first:last]
            else:
                reach = len(data) if random.random() < 0.6 else 1000
                for place in random.integers(0, min(reach, len(data)), random.integers(1, 12)):
                    data[place] = random.integers(0, 256)
            (folder / "mutated").write_bytes(data)
            for read in READERS:
                try:
                    with bounded(folder / "mutated"):
                        read(folder / "mutated")
                    outcomes[True] += 1
                except InputError as error:
                    outcomes[False] += 1
                    said.add(str(error))
    assert min(outcomes.values()) > rounds, outcomes
    assert not any("\n" in message for message in said)


@pytest.mark.ci
def test_files_with_any_bytes_changed(tmp_path):
    _read_mutations(tmp_path, 6)


@pytest.mark.slow
def test_a_thousand_files_with_any_bytes_changed(tmp_path):
    _read_mutations(tmp_path, 1000 // len(KINDS) + 1)
