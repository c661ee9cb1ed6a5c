"""Pictures and videos from disk: what their headers say, and damaged files, each of which ends in one InputError."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppe_npu.data import containers
from ppe_npu.data.inputs import InputError
from ppe_npu.data.pictures import image_size, load_image
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import VideoHeader, load_video, video_header


@pytest.fixture
def clip(tmp_path):
    """clip(name) -> path of a clip of noise, 24 frames of 64x64 at 12 per second, in which damage is visible."""

    def write(name: str, **options: str) -> Path:
        import av

        path, generator = tmp_path / name, np.random.default_rng(0)
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("libx264", rate=12)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 64, "yuv420p", 4
            for _ in range(24):
                pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


def test_headers_are_read_from_the_first_frame_and_the_packets(clip, write_image, write_clip, monkeypatch):
    decoded, decode = [], containers.OpenVideo.decode
    monkeypatch.setattr(containers.OpenVideo, "decode", lambda self, packet: decoded.append(1) or decode(self, packet))
    monkeypatch.setattr(Image.Image, "convert", None)
    assert image_size(write_image("a.png", size=(30, 20))) == (20, 30)
    assert video_header(write_clip("c.mp4", frames=9, fps=5, size=32)) == VideoHeader(9, 5.0, 32, 32)
    assert video_header(clip("c.mkv")).frames == 24  # a container that does not state them
    assert len(decoded) < 24, "a decoder may hold back what it reorders"


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "text", "another kind"])
def test_damaged_pictures(tmp_path, clip, kind, damage):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"whole.{kind}")
    whole, path = (tmp_path / f"whole.{kind}").read_bytes(), tmp_path / f"broken.{kind}"
    third = len(whole) // 3
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "noise": np.random.default_rng(1).bytes(third) + whole[third:],
            "text": b"no picture",
            "another kind": clip("c.mp4").read_bytes(),
        }[damage]
    )
    with pytest.raises(InputError, match=r"image .*broken.* cannot be read \(.*\): give a whole") as error:
        load_image(path)
    assert "\n" not in str(error.value)


def test_whatever_a_reader_raises_names_the_picture(write_image, monkeypatch):
    def fail(*_):
        raise IndexError("list index out of range")

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(InputError, match=r"image .*a\.png cannot be read \(list index"):
        load_image(write_image("a.png"))


def test_a_wrong_ending_is_no_damage(tmp_path, write_image, clip):
    (tmp_path / "a.jpg").write_bytes(Path(write_image("a.png")).read_bytes())
    assert load_image(tmp_path / "a.jpg").size == (48, 48)
    (tmp_path / "c.avi").write_bytes(clip("c.mp4").read_bytes())
    assert len(load_video(tmp_path / "c.avi", VideoSampling(nframes=4)).frames) == 4


@pytest.mark.parametrize("damage", ["cut", "cut behind its index", "empty", "zeros", "noise", "noise in front", "text"])
def test_damaged_videos(tmp_path, clip, damage):
    whole, indexed = clip("whole.mp4").read_bytes(), clip("indexed.mp4", movflags="faststart").read_bytes()
    third, noise = len(indexed) // 3, np.random.default_rng(1).bytes
    path = tmp_path / "broken.mp4"
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "cut behind its index": indexed[: len(indexed) // 2],
            "empty": b"",
            "zeros": bytes(len(whole)),
            "noise": indexed[:third] + noise(third) + indexed[2 * third :],
            "noise in front": noise(third) + indexed[third:],
            "text": b"no video" * 99,
        }[damage]
    )
    started = time.process_time()
    with pytest.raises(InputError, match=r"video .*broken\.mp4 ") as error:
        load_video(path, VideoSampling(nframes=8))
    assert "\n" not in str(error.value)
    assert time.process_time() - started < 10  # work, not the clock: a busy machine changes nothing


def test_a_video_that_lacks_its_end_is_not_taken_for_a_shorter_one(tmp_path, clip, monkeypatch):
    whole = clip("c.mp4", movflags="faststart").read_bytes()
    data = whole.index(b"mdat") + 4
    (tmp_path / "cut.mp4").write_bytes(whole[: data + (len(whole) - data) // 3])
    for read in (video_header, load_video):
        with pytest.raises(InputError, match=r"is cut off after [678] of 24 frames: give a whole"):
            read(tmp_path / "cut.mp4")
    (tmp_path / "last.mp4").write_bytes(whole[:-200])
    header, video = video_header(tmp_path / "last.mp4"), load_video(tmp_path / "last.mp4", VideoSampling(nframes=24))
    assert (header.frames, len(video.frames)) == (23, 22), "its last frame is cut, and two make one step"
