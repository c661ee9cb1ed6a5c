"""Videos that tests write. Every frame carries its number in eight black or white columns, so that the frames that were
read can be recognised without the code under test, after any codec."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

QUIET = {"libx265": {"x265-params": "log-level=none"}}
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p", "apng": "rgb24", "ffv1": "yuv444p"}


def numbered(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """uint8 [height, width, 3] frame that carries this number."""
    bits = [(number >> place & 1) * 180 + 40 for place in range(8)]
    return np.broadcast_to(np.repeat(bits, width // 8)[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(frame) -> int:
    """The number that a frame [H, W, 3] or [3, H, W] carries."""
    pixels = np.asarray(frame).astype(float)
    pixels = pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels
    columns = pixels.mean((0, 2)).reshape(8, -1).mean(1)
    return sum(1 << place for place, shade in enumerate(columns) if shade > 130)


def numbers(video) -> list[int]:
    """The numbers that a Video's frames carry."""
    return [number_of(frame.numpy()) for frame in video.frames]


def write_video(
    path: str | Path,
    codec: str = "libx264",
    frames: int = 40,
    rate: int = 10,
    keys: int = 10,
    times: Sequence[int] | None = None,
    base: Fraction = Fraction(1, 1000),
    pixels: str | None = None,
    first: int = 0,
    format: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    draw=numbered,
) -> str:
    """Writes a file of numbered frames, from `first` on; `times` are their presentation times in units of `base`."""
    import av

    with av.open(str(path), "w", format=format, container_options=container_options or {}) as file:
        stream = file.add_stream(codec, rate=rate, options={**QUIET.get(codec, {}), **(options or {})})
        picture = draw(first)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt, stream.gop_size = pixels or PIXELS.get(codec, "yuv420p"), keys
        if times is not None:
            stream.codec_context.time_base = base
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(first + number), format="rgb24")
            frame.pts = number if times is None else times[number]
            if times is not None:
                frame.time_base = base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return str(path)


def copy_packets(
    source: str,
    target: str | Path,
    wanted=lambda packet: True,
    shift: int = 0,
    container_options: dict[str, str] | None = None,
) -> str:
    """Copies the wanted packets of a file without encoding them again, with times shifted by ticks of the source."""
    import av

    with av.open(source) as old, av.open(str(target), "w", container_options=container_options or {}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size and wanted(packet):
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = stream
                new.mux(packet)
    return str(target)
