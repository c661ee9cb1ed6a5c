"""Containers that store times coarsely: one for two frames in MPEG-PS, whole frames in AVI, hundredths in GIF."""

import av
import numpy as np
import pytest
from video_files import number_of, numbers, write_video

from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import VideoFrame, VideoHeader, load_video, video_header


@pytest.mark.parametrize("name", ["a.mpg", "a.vob"])
def test_two_frames_that_begin_in_one_pack_are_two(tmp_path, name):
    """MPEG-PS states one time for both; small frames are often two in a pack."""
    path = write_video(tmp_path / name, "mpeg2video", 100, 25, keys=1)
    with av.open(path) as file:
        times = [packet.pts for packet in file.demux(video=0) if packet.size]
    assert len(set(times)) < 100
    assert video_header(path) == VideoHeader(100, 25, 48, 64)
    assert numbers(load_video(path, VideoSampling(nframes=100))) == list(range(100))


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.avi", "mpeg4", 60), ("a.h264", "libx264", 25), ("a.mp4", "libx264", 60), ("a.gif", "gif", 50)],
)
def test_a_frame_is_shown_until_the_next_begins(tmp_path, name, codec, rate):
    """Where a tick is shorter than a frame, frames may begin half a tick late; where it is a frame, times are exact."""
    path = write_video(tmp_path / name, codec, 20, rate)
    for place in (0, 7, 18):
        for part in (0.0, 0.4, 0.7):
            frame = VideoFrame(path, (place + part) / rate).load()
            assert number_of(np.asarray(frame)) == place, (place, part)
