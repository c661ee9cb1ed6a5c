"""MPEG-PS, which packs frames: several may begin in one pack, and only one of them has a time."""

import av
import pytest
from video_files import numbers, write_video

from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import VideoHeader, load_video, video_header


@pytest.mark.parametrize("name", ["a.mpg", "a.vob"])
def test_two_frames_that_begin_in_one_pack_are_two(tmp_path, name):
    """MPEG-PS states one time for both; small frames are often two in a pack."""
    path = write_video(tmp_path / name, "mpeg2video", 100, 25, keys=1)
    with av.open(path) as file:
        times = [packet.pts for packet in file.demux(video=0) if packet.size]
    assert len(set(times)) < 100
    assert video_header(path) == VideoHeader(100, 25, 48, 64)
    assert numbers(load_video(path, VideoSampling(nframes=100))) == list(range(100))
