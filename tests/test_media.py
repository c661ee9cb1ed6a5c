"""Videos that are clips of a file, or folders of frames."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ppe_npu.errors import InputError
from ppe_npu.media import VideoSampling, load_video


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
    assert brightness(video) == pytest.approx(shown, abs=5)
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


def test_fps_counts_the_clip_not_the_file(frames):
    assert len(load_video(frames, VideoSampling(fps=2, frame_rate=2.0)).frames) == 10
    assert len(load_video(frames, VideoSampling(fps=2, min_frames=2, frame_rate=2.0, start=1, end=3)).frames) == 4


def test_a_samples_clip_under_the_runs_rules():
    clip = VideoSampling(start=1, end=3, frame_rate=3.0, nframes=8)
    assert VideoSampling(fps=1, max_frames=9).within(clip) == VideoSampling(
        fps=1, max_frames=9, start=1, end=3, frame_rate=3.0
    )
    assert VideoSampling().within(clip).nframes == 8
    assert VideoSampling(nframes=4).within(None) == VideoSampling(nframes=4)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"start": -1.0}, "start=-1.0 must be at least 0"),
        ({"start": 3.0, "end": 3.0}, "start=3.0 must be at least 0 and before end=3.0"),
        ({"end": 0.0}, "end=0.0 must be greater than 0"),
        ({"frame_rate": 0}, "frame_rate=0 must be greater than 0"),
    ],
)
def test_clips_that_cannot_be(settings, reason):
    with pytest.raises(InputError, match=reason):
        VideoSampling(**settings)


def test_clips_and_folders_that_hold_nothing(write_clip, frames, tmp_path):
    with pytest.raises(InputError, match=r"the clip from 9.0 s to None s is not in the 2.0 s of video"):
        load_video(write_clip("c.mp4", frames=8, fps=4), VideoSampling(start=9.0))
    with pytest.raises(InputError, match=r"states no rate: give VideoSampling\.frame_rate"):
        load_video(frames)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is a folder without frames"):
        load_video(tmp_path / "empty", VideoSampling(frame_rate=3.0))
