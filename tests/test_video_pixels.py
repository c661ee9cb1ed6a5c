"""How a video's frames are shown: upright, from any pixel format, in the colours that the file states."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from video_files import number_of, numbered, numbers, write_video

from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import VideoFrame, load_video, video_header

# -- upright -----------------------------------------------------------------------------------------------------------

TURNS = {  # (a, b, c, d) of the display matrix -> the pixels that are shown
    (1, 0, 0, 1): lambda pixels: pixels,
    (0, 1, -1, 0): lambda pixels: np.rot90(pixels, -1),
    (-1, 0, 0, -1): lambda pixels: np.rot90(pixels, 2),
    (0, -1, 1, 0): lambda pixels: np.rot90(pixels, 1),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda pixels: pixels.swapaxes(0, 1),
    (0, -1, -1, 0): lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_upright(tmp_path, turn):
    """In all eight ways to hold a camera; four blocks of different shades tell them apart."""

    def draw(number: int) -> np.ndarray:
        shades = np.array([[40, 90], [140, 200]]) + number
        return np.repeat(np.kron(shades, np.ones((24, 32)))[..., None], 3, axis=2).astype(np.uint8)

    path = write_video(tmp_path / "a.mp4", frames=4, rate=4, draw=draw)
    whole = bytearray(Path(path).read_bytes())
    a, b, c, d = (value * 2**16 for value in turn)
    struct.pack_into(">9i", whole, whole.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 2**30)
    Path(path).write_bytes(whole)
    seen = TURNS[turn](draw(0).astype(int))
    header, frame, video = video_header(path), VideoFrame(path, 0.0), load_video(path, VideoSampling(nframes=4))
    assert (header.height, header.width) == frame.size[::-1] == seen.shape[:2] == video.frames.shape[2:]
    assert np.abs(np.asarray(frame.load()).astype(int) - seen).max() <= 6
    assert np.array_equal(np.asarray(frame.load()), video.frames[0].permute(1, 2, 0).numpy())


def test_a_matrix_of_nothing_turns_nothing(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=2)
    whole = bytearray(Path(path).read_bytes())
    struct.pack_into(">9i", whole, whole.index(b"tkhd") + 44, *[0] * 9)
    Path(path).write_bytes(whole)
    assert numbers(load_video(path)) == [0, 1]


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p10le"), ("a.mkv", "ffv1", "gray"), ("a.mkv", "ffv1", "gray10le"),
        ("a.mp4", "libx264", "yuv444p"), ("a.mp4", "libx264", "yuvj420p"), ("a.mkv", "libx264rgb", "rgb24"),
        ("a.mkv", "ffv1", "gray16le"), ("a.mkv", "ffv1", "bgra"), ("a.mov", "qtrle", "argb"), ("a.mov", "png", "rgba"),
        ("a.mov", "prores_ks", "yuva444p10le"), ("a.avi", "rawvideo", "bgr24"), ("a.avi", "msvideo1", "rgb555le"),
    ],
)  # fmt: skip
def test_formats_of_pixels(tmp_path, name, codec, pixels):
    path = write_video(tmp_path / name, codec, frames=4, pixels=pixels)
    video = load_video(path, VideoSampling(nframes=4))
    for number, frame in enumerate(video.frames):
        assert np.abs(frame.permute(1, 2, 0).numpy().astype(int) - numbered(number)).mean() < 8


RED = (200, 30, 60)
MATRICES = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 7: (0.212, 0.087), 6: (0.299, 0.114), 2: (0.299, 0.114)}  # kr, kb


def stated(matrix: int, whole: bool) -> tuple[list[int], float]:
    """RED as 8-bit YUV by a matrix of ITU-T H.273, and how far rounding may move a colour."""
    (kr, kb), (red, green, blue) = MATRICES[matrix], (value / 255 for value in RED)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    differences = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    low, high, span = (0, 255, 255) if whole else (16, 219, 224)
    farthest = 255 / high + 255 / span * (2 - 2 * kb)  # of one step of luma and one of a difference
    return [round(low + high * luma), *(round(128 + span * part) for part in differences)], farthest


@pytest.mark.parametrize("whole", [False, True], ids=["limited", "whole range"])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "ffv1"), ("a.mp4", "libx264")])
def test_colours_are_those_of_the_matrix_and_range_that_a_file_states(tmp_path, name, codec, matrix, whole):
    """HD videos state BT.709; when they were read with BT.601's matrix, a green was 20 too dark."""
    import av

    values, farthest = stated(matrix, whole)
    with av.open(str(tmp_path / name), "w") as file:
        stream = file.add_stream(codec, rate=10, options={"qp": "0"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1 + whole
        for number in range(2):
            frame = av.VideoFrame(32, 32, "yuv444p")
            for plane, value in zip(frame.planes, values):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.colorspace, frame.color_range, frame.pts = matrix, 1 + whole, number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    shown = load_video(tmp_path / name).frames[0, :, 16, 16].tolist()
    assert max(abs(got - right) for got, right in zip(shown, RED)) <= farthest, shown


def test_transparency_is_laid_on_white(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgra"
        pixels = np.zeros((48, 64, 4), dtype=np.uint8)
        pixels[:, 32:, 3], pixels[:, 16:32, 3] = 255, 128
        file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        file.mux(stream.encode())
    row = np.asarray(VideoFrame(str(tmp_path / "a.mkv"), 0.0).load())[0, :, 0].tolist()
    assert row == [255] * 16 + [127] * 16 + [0] * 32


@pytest.mark.parametrize(("width", "height"), [(24, 24), (40, 32), (854, 480)])
def test_transparency_beside_yuv_of_any_width(tmp_path, width, height):
    """For these widths FFmpeg writes packed RGBA beyond the end of rows, which may crash the process."""
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuva420p"
        frame = av.VideoFrame(width, height, "yuva420p")
        for plane, value in zip(frame.planes, (16, 128, 128, 255)):
            plane.update(bytes([value]) * plane.buffer_size)
        half = frame.planes[3].line_size * (height // 2)
        frame.planes[3].update(bytes(half) + b"\xff" * (frame.planes[3].buffer_size - half))
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    column = np.asarray(VideoFrame(str(tmp_path / "a.mkv"), 0.0).load())[:, width // 2, 0].tolist()
    assert column == [255] * (height // 2) + [0] * (height // 2)


@pytest.mark.parametrize(("width", "height"), [(65, 49), (1, 1), (8, 1), (17, 5)])
def test_odd_sizes(tmp_path, width, height):
    path = write_video(tmp_path / "a.mkv", "ffv1", 2, draw=lambda n: np.full((height, width, 3), 50 * n, np.uint8))
    assert load_video(path).frames.float().mean((1, 2, 3)).tolist() == [0, 50]
    assert VideoFrame(path, 0.0).size == (width, height)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.gif", "a.avi", "a.webm", "a.h264", "a.mpg", "a.flv"])
def test_a_video_of_one_frame(tmp_path, name):
    codec = {"gif": "gif", "webm": "libvpx", "mpg": "mpeg2video"}.get(name[2:], "libx264")
    path = write_video(tmp_path / name, codec, frames=1, rate=25, first=9)
    assert video_header(path).frames == 1
    assert numbers(load_video(path, VideoSampling(fps=2))) == [9]
    assert number_of(np.asarray(VideoFrame(path, 3.0).load())) == 9
