"""Videos that are clips of a file, or folders of frames."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tolerances import codec_error
from video_files import numbers, write_video

from ppe_npu.data import decoding
from ppe_npu.data.inputs import build_inputs
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import VideoFrame, load_video
from ppe_npu.errors import InputError


@pytest.fixture
def frames(tmp_path):
    """A folder of 10 frames, number n (from 1) of brightness 10 n."""
    for number in range(1, 11):
        Image.fromarray(np.full((16, 16, 3), 10 * number, dtype=np.uint8)).save(tmp_path / f"{number:05d}.png")
    return tmp_path


def brightness(video) -> list[int]:
    return video.frames.float().mean((1, 2, 3)).round().int().tolist()


@pytest.mark.parametrize(
    ("clip", "shown", "fps"),
    [
        ({}, [20, 80, 150, 210], 0.8),  # frames 0, 6, 13, 19 of 20, which span 5 s
        ({"start": 1.0, "end": 2.5}, [60, 80, 100, 120], 4 / 7 * 4),  # frames 4 to 10
        ({"start": 3.0}, [140, 160, 190, 210], 4 / 8 * 4),
        ({"end": 0.5}, [20, 40], 2 / 3 * 4),  # three frames: two make one step
        ({"end": 99.0}, [20, 80, 150, 210], 0.8),
    ],
)
def test_clips_of_a_file(write_clip, clip, shown, fps):
    video = load_video(write_clip("c.mp4", frames=20, fps=4), VideoSampling(nframes=4, **clip))
    assert brightness(video) == pytest.approx(shown, abs=codec_error())
    assert video.fps == pytest.approx(fps)


@pytest.mark.parametrize(
    ("clip", "shown"),
    [
        ({}, [10, 40, 70, 100]),
        ({"start": 1.0, "end": 3.0}, [20, 30, 50, 60]),  # at 2 per second: pictures 2 to 6, at 1, 4/3, 5/3, 2 of that
        ({"start": 0.0, "end": 0.5}, [10]),
    ],
)
def test_clips_of_a_folder(frames, clip, shown):
    video = load_video(frames, VideoSampling(nframes=4, frame_rate=2.0, **clip))
    assert video.frames.shape[1:] == (3, 16, 16)
    assert brightness(video) == shown


@pytest.mark.parametrize("keys", [1, 6, 250])
def test_a_late_clip_is_sought_and_gives_the_same_frames(write_clip, monkeypatch, keys):
    path = write_clip("c.mp4", frames=20, fps=4, keys=keys)
    sampling = VideoSampling(nframes=4, start=2.0, end=4.0)
    decoded = load_video(path, sampling)
    monkeypatch.setattr(decoding, "_FAR", 1)
    sought = load_video(path, sampling)
    assert brightness(sought) == pytest.approx([100, 130, 150, 180], abs=codec_error())
    assert np.array_equal(sought.frames, decoded.frames)


@pytest.mark.parametrize(
    ("total", "rule", "origin", "taken", "length"),
    [
        (20, {"nframes": 4}, 0, [2, 7, 12, 16], 20),  # segments of 4.75: 2.375 + 0, 5, 10 (9.5 to even), 14
        (20, {"nframes": 4, "start": 1.0, "end": 2.5}, 0, [4, 6, 7, 8], 7),  # of 1.5 from 4: 4.75 + 0, 2, 3, 4
        (12, {"nframes": 4, "start": 0.75, "end": 2.25}, 1, [2, 4, 5, 6], 7),  # pictures 3 to 9: the same, from 2
        (161, {"nframes": 16}, 0, list(range(5, 161, 10)), 161),
        (
            160,
            {"fps": 0.2, "min_frames": 2},
            0,
            [9, 29, 49, 69, 89, 108, 128, 148],
            160,
        ),  # 8 of 19.875
        (5, {"nframes": 8}, 0, [0, 0, 1, 2, 2, 2, 3, 4], 5),  # fewer than are asked for: some of them twice
        (4, {"nframes": 4}, 0, [0, 1, 2, 2], 4),
        (1, {"nframes": 4}, 0, [0, 0, 0, 0], 1),
    ],
)
def test_middles_of_equal_segments(total, rule, origin, taken, length):
    assert VideoSampling(middles=True, **rule).indices(total, 4.0, 2, origin) == (taken, length)


@pytest.mark.parametrize("total", range(1, 70))
def test_middles_rise_within_the_video_and_are_as_many_as_counted(total):
    sampling = VideoSampling(nframes=16, middles=True)
    taken, _ = sampling.indices(total, 4.0, 2)
    assert len(taken) == sampling.count(total, 4.0, 2)
    assert len(taken) == 16
    assert taken == sorted(taken)
    assert total < 17 or len(set(taken)) == 16
    assert 0 <= taken[0] <= taken[-1] < total


def test_fps_counts_the_clip_not_the_file(frames):
    assert len(load_video(frames, VideoSampling(fps=2, frame_rate=2.0)).frames) == 10
    assert len(load_video(frames, VideoSampling(fps=2, min_frames=2, frame_rate=2.0, start=1, end=3)).frames) == 4


def test_a_samples_clip_under_the_runs_rules():
    clip = VideoSampling(start=1, end=3, frame_rate=3.0, nframes=8)
    assert VideoSampling(fps=1, max_frames=9).within(clip) == VideoSampling(
        fps=1, max_frames=9, start=1, end=3, frame_rate=3.0
    )
    assert VideoSampling().within(clip).nframes == 8
    assert VideoSampling(nframes=4).within(VideoSampling(middles=True)) == VideoSampling(nframes=4, middles=True)
    assert VideoSampling(nframes=4).within(None) == VideoSampling(nframes=4)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"start": -1.0}, "start=-1.0 must be at least 0"),
        ({"start": 3.0, "end": 3.0}, "start=3.0 is not before end=3.0: give a later end, or leave one out"),
        (
            {"min_pixels": 9, "max_pixels": 4},
            "min_pixels=9 is larger than max_pixels=4: exchange them, or leave one out",
        ),
        ({"end": 0.0}, "end=0.0 must be greater than 0"),
        ({"frame_rate": 0}, "frame_rate=0 must be greater than 0"),
    ],
)
def test_clips_that_cannot_be(settings, reason):
    with pytest.raises(InputError, match=reason):
        VideoSampling(**settings)


@pytest.mark.parametrize("name", ["{}.png", "f_{}.PNG", "{:05}.jpg", "clip-3-{}.jpeg", "2-{}b1.png"])
def test_frames_of_a_folder_go_by_the_numbers_in_their_names(tmp_path, name):
    for number in reversed(range(12)):
        Image.new("RGB", (16, 16), (20 * number,) * 3).save(tmp_path / name.format(number))
    video = load_video(tmp_path, VideoSampling(nframes=12, frame_rate=2.0))
    shades = video.frames.float().mean((1, 2, 3)) / 20
    assert shades.round().tolist() == list(range(12))


def test_clips_and_folders_that_hold_nothing(write_clip, frames, tmp_path):
    with pytest.raises(InputError, match=r"the clip from 9.0 s to None s is outside the video, which lasts 2.0 s"):
        load_video(write_clip("c.mp4", frames=8, fps=4), VideoSampling(start=9.0))
    with pytest.raises(InputError, match=r"has no frame rate: set VideoSampling\.frame_rate"):
        load_video(frames)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is a folder without frames"):
        load_video(tmp_path / "empty", VideoSampling(frame_rate=3.0))


# -- single frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, 20), (0.2, 20), (0.25, 30), (1.0, 60), (1.3, 70), (4.75, 210), (60.0, 210)],  # after the end: the last
)
def test_a_frame_is_the_one_that_is_shown_then(write_clip, seconds, shown):
    path = write_clip("c.mp4", frames=20, fps=4)
    frame = VideoFrame(path, seconds)
    assert frame.size == (48, 48)
    assert np.asarray(frame.load()).mean() == pytest.approx(shown, abs=codec_error())
    wanted = load_video(path, VideoSampling(nframes=20)).frames[min(int(seconds * 4), 19)]
    assert np.array_equal(np.asarray(frame.load()), wanted.permute(1, 2, 0).numpy())


def test_frames_are_pictures_of_a_prompt(write_clip, tiny_processor):
    frames = [VideoFrame(write_clip("c.mp4"), seconds) for seconds in (0.0, 1.0)]
    content = [*({"type": "image", "image": frame} for frame in frames), {"type": "text", "text": "count"}]
    pictures = [{**item, "image": item["image"].load()} if "image" in item else item for item in content]
    lazy, loaded = (build_inputs(tiny_processor, [[{"role": "user", "content": c}]]) for c in (content, pictures))
    assert lazy["image_grid_thw"].shape == (2, 3)
    assert (lazy["pixel_values"] == loaded["pixel_values"]).all()


def test_frames_of_no_video(tmp_path):
    (tmp_path / "no.mp4").write_text("no")
    for read in (lambda frame: frame.load(), lambda frame: frame.size):
        with pytest.raises(InputError, match=r"no\.mp4 cannot be (read|decoded)"):
            read(VideoFrame(str(tmp_path / "no.mp4"), 0.0))
        with pytest.raises(InputError, match=r"gone\.mp4 does not exist"):
            read(VideoFrame(str(tmp_path / "gone.mp4"), 0.0))


def test_a_clip_of_few_frames_shows_some_of_them_again(tmp_path):
    """Four frames in eight equal parts, as MVBench's notebook takes 16 of clips that have fewer; 10 per second."""
    path = write_video(tmp_path / "short.mp4", frames=30)
    clip = VideoSampling(nframes=8, middles=True, start=1.2, end=1.5)
    assert numbers(load_video(path, clip)) == [12 + round(n * 3 / 8) for n in range(8)]
