"""Pixels of any kind -> 8-bit RGB, by one rule for each kind (docs/data.md, "Pictures").

Colours are converted to sRGB by the picture's own profile, then transparency is laid on white.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops

from ppe_npu.errors import InputError

_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
_DEEP = (*_SIXTEEN, "I", "F")
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", *_PREMULTIPLIED, *_DEEP)
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # mode -> a profile's space
_DEEPEST = 65_535
_BITS, _PHOTOMETRIC = 258, 262  # TIFF's tags
_BAND = 2**22  # pixels that are converted at a time, to keep intermediate results small
_GREY_STEPS = (85, 17)  # between the 8-bit values of pictures of 2 and of 4 bits


def to_rgb(image: Image.Image, name: str, factor: int = 1) -> Image.Image:
    """A picture of any mode as RGB, each `factor` x `factor` pixels averaged into one.

    Args:
        image: decoded. name: what messages call the picture.

    Raises:
        InputError: a mode or a range of values that has no rule.
    """
    if image.mode not in MODES:
        raise InputError(f"{name} has pixels of mode {image.mode}, which are not supported: save it as 8-bit RGB")
    paint = _painter(image, name)
    width, height = image.size
    if factor == 1 and width * height <= _BAND:
        return paint(image)
    out = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top, band in _bands(image, factor):
        painted = paint(band)
        out.paste(painted.reduce(factor) if factor > 1 else painted, (0, top // factor))
    return out


def to_bytes(values: np.ndarray, name: str, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Numbers of any type as uint8, shape unchanged.

    uint8 stays; bool is 0 or 255; uint16 is value // 256. Other whole numbers are 8-bit values if none is above 255,
    16-bit values (value // 256) if none is above 65,535. Floating point is a fraction of 255 if none is above 1, else
    it is treated like whole numbers; 8-bit values are rounded.

    Args:
        low, high: the least and the largest of all values, if `values` is a part of them.

    Raises:
        InputError: values below 0, above 65,535, infinite or NaN; floating point up to a number between 1 and 2; or
            no numbers.
    """
    if values.dtype.kind not in "buif":
        raise InputError(f"{name} has values of type {values.dtype}: give uint8 or floating point from 0 to 1")
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.itemsize == 1 and values.dtype.kind == "u":
        return values
    if values.dtype.itemsize == 2 and values.dtype.kind == "u":
        return (values >> 8).astype(np.uint8)
    if low is None or high is None:
        low, high = float(values.min(initial=0)), float(values.max(initial=0))  # float16 has no 65,535
    unclear = values.dtype.kind == "f" and 1 < high < 2  # a picture from 0 to 1 that overshoots, or a black one
    if unclear or not (low >= 0 and high <= _DEEPEST):
        raise InputError(
            f"{name} has values from {low:g} to {high:g}: give 0 to 255, 0 to 65535, or 0 to 1 as floating point"
        )
    if values.dtype.kind == "f":
        scale = 255.0 if high <= 1 else 1.0
        values = np.rint(values.astype(np.float32) * scale) if high <= 255 else values
    return values.astype(np.uint8) if high <= 255 else (values // 256).astype(np.uint8)


def low_bytes(image: Image.Image) -> Image.Image | None:
    """The lower bytes of the colours of an undecoded PNG that has 16 bits per colour and one transparent colour; Pillow
    returns only the upper bytes, which other colours may share. None for any other picture."""
    tile = image.tile[0] if getattr(image, "tile", None) else ()
    if image.format != "PNG" or tile[3:] != ("RGB;16B",) or "transparency" not in image.info:
        return None
    place = image.fp.tell()
    try:
        image.fp.seek(0)
        low = type(image)(image.fp)
        low.tile = [(*tile[:3], "RGB;16L")]  # as if the lower byte of each were the upper one
        low.load()
    finally:
        image.fp.seek(place)
    return low


def with_exact_key(image: Image.Image, low: Image.Image) -> Image.Image:
    """A picture as RGBA, transparent where it and its low_bytes both equal the bytes of the transparent colour."""
    key = np.array(image.info["transparency"])
    clear = ((np.asarray(image) == key >> 8) & (np.asarray(low) == key & 255)).all(-1)
    out = image.convert("RGB")
    out.info = {name: value for name, value in image.info.items() if name != "transparency"}
    out.putalpha(_mask(clear))
    return out


def _bands(image: Image.Image, factor: int):
    """Yield (first row, part of the picture) from top to bottom, in multiples of `factor` rows."""
    width, height = image.size
    rows = max(_BAND // max(width, 1) // factor, 1) * factor
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _painter(image: Image.Image, name: str) -> Callable[[Image.Image], Image.Image]:
    """A function that converts the picture, or a part of it, to RGB; what depends on all of it is found here, once."""
    low, high = _range(image) if image.mode in ("I", "F") else (None, None)
    if image.mode == "I" and image.format == "PPM":
        high = _DEEPEST  # Pillow has scaled it to 16 bits, however dark it is
    key, to_srgb = _key_colour(image), _colour_transform(image)
    lacking, white_is_0 = _as_tiff_has_them(image)

    def paint(part: Image.Image) -> Image.Image:
        if part.mode in _PREMULTIPLIED and to_srgb is None:
            return _premultiplied_on_white(part)
        alpha = None
        if part.mode in _DEEP:
            values = np.asarray(part)
            alpha = None if key is None else _mask(values == key)
            values = to_bytes(values << lacking if lacking else values, name, low, high)
            part = Image.fromarray(255 - values if white_is_0 else values)
        elif key is not None:
            alpha = _mask((np.asarray(part) == key).reshape(*part.size[::-1], -1).all(-1))
        part, own = _opaque(part)
        alpha = own or alpha
        rgb = part.convert("RGB") if to_srgb is None else to_srgb(part)
        if alpha is None:
            return rgb
        white = Image.new("RGB", rgb.size, "white")
        white.paste(rgb, mask=alpha)
        return white

    return paint


def _opaque(part: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(the colours, the alpha channel if there is one) of a picture of at most 8 bits a channel."""
    part = part.convert(_PREMULTIPLIED[part.mode]) if part.mode in _PREMULTIPLIED else part
    if part.mode == "PA" or (part.mode == "P" and _palette_is_transparent(part)):
        part = part.convert("RGBA")
    if part.mode == "RGBA":
        return part.convert("RGB"), part.getchannel("A")
    if part.mode == "LA":
        return part.getchannel("L"), part.getchannel("A")
    if part.mode == "1":
        return part.convert("L"), None
    if part.mode in ("P", "RGBX", "YCbCr", "HSV"):
        return part.convert("RGB"), None
    return part, None


def _palette_is_transparent(image: Image.Image) -> bool:
    return "transparency" in image.info or (image.palette is not None and image.palette.mode.endswith("A"))


def _premultiplied_on_white(part: Image.Image) -> Image.Image:
    *colours, alpha = part.split()
    clear = ImageChops.invert(alpha)
    return Image.merge("RGB", [ImageChops.add(colours[n % len(colours)], clear) for n in range(3)])


def _as_tiff_has_them(image: Image.Image) -> tuple[int, bool]:
    """(bits that are missing to 16, whether 0 is white), for pixels of more than 8 bits, which Pillow returns as a TIFF
    stores them."""
    tags = getattr(image, "tag_v2", {})
    return (4 if tags.get(_BITS) == (12,) else 0), tags.get(_PHOTOMETRIC) == 0


def _mask(transparent: np.ndarray) -> Image.Image:
    """bool [H, W] -> alpha channel."""
    return Image.fromarray(np.where(transparent, np.uint8(0), np.uint8(255)))


def _range(image: Image.Image) -> tuple[float, float]:
    """The least and the largest value; NaN if there is one."""
    parts = [np.asarray(band) for _, band in _bands(image, 1)]
    return float(min(part.min() for part in parts)), float(max(part.max() for part in parts))


def _key_colour(image: Image.Image) -> Any:
    """The one colour that is transparent, in the picture's own values; None if there is none or a palette has it."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and len(key) == 3 and all(isinstance(n, int) for n in key):
        return tuple(n >> 8 for n in key) if max(key) > 255 else key  # 16-bit values, as the file has them
    if not isinstance(key, int):
        return None
    if image.mode == "1":
        return key != 0
    if image.mode == "L" and 0 < key < 16:  # perhaps of 2 or 4 bits, as in the file; but the pixels were scaled
        held = {value for value, count in enumerate(image.histogram()) if count}
        scaled = [key * step for step in _GREY_STEPS if key * step <= 255 and not any(v % step for v in held)]
        return key if key in held or not scaled else scaled[0]
    return key if image.mode in ("L", *_SIXTEEN) else None


def _colour_transform(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """A function for colours without alpha -> sRGB, for LAB and for a picture with a profile of its own colour space;
    None where Pillow's own conversion is right."""
    if image.mode == "LAB":
        return _transform(None, "LAB")
    stored = image.info.get("icc_profile")
    mode = "CMYK" if image.mode == "CMYK" else "L" if image.mode in ("1", "L", "LA", "La", *_DEEP) else "RGB"
    return _transform(stored, mode) if isinstance(stored, bytes) and stored else None


def _transform(stored: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """A function from LAB (no profile) or a profile to sRGB; None if that is sRGB, of another space, or damaged."""
    try:
        from PIL import ImageCms

        srgb = ImageCms.createProfile("sRGB")
    except ImportError as error:  # Pillow without LittleCMS
        if mode == "LAB":
            raise InputError("pictures in LAB need Pillow's ImageCms: save them as RGB") from error
        return None
    try:
        source = ImageCms.createProfile("LAB") if stored is None else ImageCms.ImageCmsProfile(io.BytesIO(stored))
        if stored is not None:
            same = (source.profile.profile_description or "").startswith("sRGB")
            if same or source.profile.xcolor_space.strip() != _SPACES[mode]:
                return None
        made = ImageCms.buildTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    return lambda part: ImageCms.applyTransform(part, made)


def as_array(values: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """The values of a dense tensor on any device, as an array; an array is returned as it is.

    Raises:
        InputError: as check_dense.
    """
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)  # as np.matrix, every result would have two dimensions
    check_dense(values, name)
    values = values.detach().cpu().resolve_conj().resolve_neg()
    # numpy has no bfloat16 and no 8-bit floating point
    known = values.dtype.is_complex or not values.is_floating_point() or values.dtype.itemsize > 2
    return (values if known or values.dtype == torch.float16 else values.float()).numpy()


def check_dense(values: Any, name: str) -> None:
    """Raise InputError for a tensor that has no values (meta), or no plain ones (nested, sparse, quantized)."""
    if not isinstance(values, torch.Tensor):
        return
    if values.is_meta or values.is_nested or values.layout != torch.strided or values.is_quantized:
        raise InputError(f"{name} is a tensor without plain values ({values.device}, {values.dtype}): give a dense one")
