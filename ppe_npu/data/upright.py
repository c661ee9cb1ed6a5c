"""One decoded frame -> the pixels that a player shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ppe_npu.errors import InputError, first_line

# Matrices between RGB and YUV, and a range of values, as FFmpeg numbers them (libavutil/pixfmt.h).
_BT601, _ALSO_BT601, _WHOLE_RANGE = 5, 6, 2
_OTHERS = (1, 4, 7, 9, 10)  # BT.709, FCC, SMPTE 240M, BT.2020; all else, and what is not stated, is read as BT.601


def upright(frame: Any, path: str | Path) -> np.ndarray:
    """A frame of PyAV's as RGB, uint8 [H, W, 3]: turned and mirrored as its display matrix says, transparency on white.

    Other turns are rounded to quarter turns. Pixels that are not square stay as they are. Colours are converted by the
    matrix and the range that the frame states.

    Raises:
        InputError: pixels that FFmpeg cannot convert; the message names the file at `path`.
    """
    try:
        pixels = _rgb(frame)
    except Exception as error:  # PyAV and Pillow may raise anything
        given = f"pixels of format {frame.format.name} ({first_line(error)})"
        raise InputError(f"video {path} has {given}, which do not convert to RGB: convert it to yuv420p") from error
    matrix = next((np.frombuffer(data, dtype=np.int32) for data in frame.side_data if _is_matrix(data)), None)
    if matrix is None:
        return pixels
    # A pixel at (x, y) is shown at (a x + c y, b x + d y): ISO/IEC 14496-12, 6.2.2.
    a, b, _, c, d = matrix[:5].astype(float)
    if abs(b * c) > abs(a * d):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _rgb(frame: Any) -> np.ndarray:
    stated = _stated_colours(frame)
    if not any(component.is_alpha for component in frame.format.components) and frame.format.name != "pal8":
        return frame.to_ndarray(format="rgb24", **stated)
    from PIL import Image

    # YUV is converted to planes: into packed pixels FFmpeg writes beyond the ends of rows at many widths.
    form = "rgba" if frame.format.is_rgb else "gbrap"
    layered = Image.fromarray(np.ascontiguousarray(frame.to_ndarray(format=form, **stated)), "RGBA")
    ground = Image.new("RGB", layered.size, "white")
    ground.paste(layered, mask=layered.getchannel("A"))
    return np.array(ground)


def _stated_colours(frame: Any) -> dict[str, int]:
    """PyAV's options for a YUV frame whose matrix is not BT.601's or whose range is not limited; without options PyAV
    assumes both, whatever the frame states."""
    known = frame.format.name.startswith("yuvj")  # the format itself means full range
    whole = known or int(frame.color_range) == _WHOLE_RANGE
    matrix = int(frame.colorspace) if int(frame.colorspace) in _OTHERS else _BT601
    if frame.format.is_rgb or len(frame.format.components) < 3 or (matrix == _BT601 and whole == known):
        return {}
    # The target, for which the matrix means nothing, gets BT.601's other number: PyAV ignores two equal numbers.
    ranges = {"src_color_range": _WHOLE_RANGE if whole else 0, "dst_color_range": 0}
    return {"src_colorspace": matrix, "dst_colorspace": _ALSO_BT601, **ranges}


def _is_matrix(data: Any) -> bool:
    return data.type.name == "DISPLAYMATRIX"
