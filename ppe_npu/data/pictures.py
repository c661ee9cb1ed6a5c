"""load_image: anything that is a picture -> upright 8-bit RGB. Every reader in this package uses it.

A picture is a path, the bytes of a file, an open file, a row's {"bytes": ..., "path": ...}, a Pillow picture, a numpy
array or a torch tensor. However it is given, the same picture gives the same pixels, by the rules of docs/data.md.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ppe_npu.data.colours import as_array, check_dense, low_bytes, to_bytes, to_rgb, with_exact_key
from ppe_npu.errors import InputError, first_line
from ppe_npu.utils.paths import IN_ITS_PLACE, existing_file, shown_path

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
# Formats that are not read, named in messages. Ghostscript, which Pillow would start for PostScript, is never run.
_OTHERS = (
    (0, b"%!PS", "PostScript"), (0, b"\xc5\xd0\xd3\xc6", "PostScript"), (0, b"%PDF", "PDF"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"), (40, b" EMF", "EMF"), (0, b"8BPS", "PSD"), (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"<svg", "SVG"), (0, b"<?xml", "XML, perhaps SVG"), (4, b"ftyphei", "HEIC"), (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"), (4, b"ftypmsf1", "HEIC"), (0, b"\xff\n", "JPEG XL"), (4, b"JXL ", "JPEG XL"),
    (4, b"ftypcrx", "a raw photograph"), (4, b"ftypavi", "AVIF, damaged or not supported by this Pillow"),
    (4, b"ftypM4A", "sound"), (4, b"ftyp", "a video"), (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"), (0, b"v/1\x01", "OpenEXR"), (0, b"#?R", "Radiance HDR"), (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"), (0, b"PK\3\4", "a zip file"),
    (128, b"DICM", "DICOM"), (0, b"SIMPLE  =", "FITS"), (0, b"\x89HDF", "HDF5"), (0, b"icns", "ICNS"),
    *((0, *known) for known in IN_ITS_PLACE),
)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
_BITS, _PLANES, _SAMPLES, _REDUCED, _PICTURES_BESIDE, _DNG = 258, 284, 277, 254, 330, 50706  # TIFF's
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHOLE = 89_478_485  # pixels up to which a picture keeps its size; above, 2 x 2 pixels become one
MOST = 2 * _WHOLE
_DECODING = 2**30  # bytes that decoding may take. Bytes per pixel by format (Pillow's own copy and the decoder's):
_BYTES = {"PNG": 4, "BMP": 4, "DIB": 4, "PPM": 4, "JPEG": 4, "MPO": 4, "GIF": 12, "TIFF": 12, "WEBP": 16, "AVIF": 16}
_BYTES_OTHERS = 20
_BYTES_PROGRESSIVE = 10
_REMEDY = "give a whole PNG, JPEG or WebP file"


def load_image(source: Any, name: str | None = None) -> Image.Image:
    """A picture as 8-bit RGB, turned upright by its EXIF orientation, transparency laid on white.

    Args:
        source: a path; bytes; a file opened for reading bytes, which is read from its start, whatever its position;
            {"bytes": ..., "path": ...} as the datasets library writes it, where either may be None; a Pillow picture,
            loaded or not; an array or tensor [H, W], [H, W, C] or [C, H, W] with C of 1 (grey), 3 (RGB) or 4 (RGBA) and
            values as colours.to_bytes takes them. If the first and the last axis could both be the channels, it is the
            first of a tensor and the last of an array.
        name: the picture's name in messages; None: its path or a description.

    Raises:
        InputError: a file that does not exist, is damaged, too large, or of no format that is read, or an array whose
            shape or values are none of these.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _of_array(source, name or "an image")
    with _opened(source, name) as (image, shown):
        low = low_bytes(image)
        _load(image)  # in some formats the orientation comes after the pixels
        turn = _TURNS.get(_orientation(image))
        rgb = to_rgb(image if low is None else with_exact_key(image, low), shown, _factor(image.size))
    return rgb if turn is None else rgb.transpose(turn)


def image_size(source: Any, name: str | None = None) -> tuple[int, int]:
    """(height, width) in pixels of load_image's result, from the header. Only a PNG with metadata after its pixels is
    decoded.

    Raises:
        InputError: as load_image, except for faults that only decoding finds.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        size, _ = _layout(source, name or "an image")
    else:
        with _opened(source, name) as (image, _):
            turned = _orientation_by_header(image) in (5, 6, 7, 8)
            size = image.size if turned else image.size[::-1]
    factor = _factor(size)
    return -(-size[0] // factor), -(-size[1] // factor)


def lazy_image(source: Any, name: str | None = None) -> Image.Image:
    """load_image's result, decoded when its pixels are first used. The header is read now.

    Raises:
        InputError: as image_size; reading pixels raises it as load_image does.
    """
    return _Lazy(source, name)


class _Lazy(Image.Image):
    """An RGB picture of known size whose pixels are decoded at the first use."""

    _source: tuple[Any, str | None] | None = None

    def __init__(self, source: Any, name: str | None) -> None:
        super().__init__()
        self._size, self._mode = image_size(source, name)[::-1], "RGB"
        self._source = (source, name)

    def load(self):
        if self._source is not None:
            self.im, self._source = load_image(*self._source).im, None
        return super().load()


@contextlib.contextmanager
def _opened(source: Any, name: str | None) -> Iterator[tuple[Image.Image, str]]:
    """Yield (the picture, its header read and its size checked; its name). Errors of Pillow's become InputErrors."""
    if isinstance(source, Mapping):
        source = _of_row(source, name or "an image")
    elif hasattr(source, "read") and hasattr(source, "seek"):
        source = _of_file(source, name or "an image")
    if isinstance(source, Image.Image):
        shown = getattr(source, "filename", None)
        name = name or (f"image {shown_path(shown)}" if shown else "an image")
        file: Any = contextlib.nullcontext()
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = name or f"an image of {len(source):,} bytes"
        file = io.BytesIO(bytes(source))  # a memoryview may have gaps
    else:
        if not isinstance(source, (str, os.PathLike)):
            raise InputError(
                f"{name or 'an image'} is given as {type(source).__name__}: give a path, bytes, an open file, a "
                "Pillow picture, an array or a tensor"
            )
        path, name = existing_file(source, "image"), name or f"image {shown_path(source)}"
        file = None
    try:
        with open(path, "rb") if file is None else file as file:
            image = source if isinstance(source, Image.Image) else _identified(file, name)
            _check(image, name)
            yield image, name
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large to be read: make it smaller than {MOST // 10**6} megapixels") from error
    except Exception as error:  # Pillow's readers raise errors of many types: struct.error, EOFError, ...
        raise InputError(f"{name} cannot be read ({first_line(error)}): {_REMEDY}") from error


def _of_row(row: Mapping[str, Any], name: str) -> Any:
    """The bytes of a row's picture, or its path if it has no bytes."""
    held = [row[key] for key in ("bytes", "path") if row.get(key) is not None]
    if not held or not isinstance(held[0], (bytes, bytearray, memoryview, str, Path)):
        kind = type(held[0]).__name__ if held else "missing"
        raise InputError(f"{name} is a row whose bytes or path is {kind}: give {{'bytes': a file's bytes}}")
    return held[0]


def _of_file(file: Any, name: str) -> bytes:
    """All bytes of an open file, whose position is restored.

    Raises:
        InputError: a file that is closed, opened for text, or cannot be read twice (a pipe, a device, a connection).
    """
    try:
        if not file.seekable() or not _is_regular(file):
            raise InputError(f"{name} is given as an open pipe, device or connection: save it to a file first")
        place = file.tell()
        file.seek(0)
        try:
            data = file.read()
        finally:
            file.seek(place)
    except (OSError, ValueError, AttributeError) as error:
        why = first_line(error)
        raise InputError(f"{name} is given as an open file that cannot be read ({why}): open it again") from error
    if not isinstance(data, bytes):
        raise InputError(f"{name} is given as a file opened for text: open it for bytes (mode 'rb')")
    return data


def _is_regular(file: Any) -> bool:
    """Whether an open file is a regular file, or has no file descriptor at all (io.BytesIO)."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
        return True


def _load(image: Image.Image) -> None:
    """Decode a picture. Without a file name Pillow does not map an uncompressed TIFF into memory: it would take the
    size after turning, which shuffles the rows."""
    if not (_is_unread(image) and image.format == "TIFF" and getattr(image, "filename", None)):
        image.load()
        return
    path, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = path


def _identified(file: io.BufferedIOBase, name: str) -> Image.Image:
    """A picture of one of FORMATS, its header read.

    Image.open is not used: it warns about sizes that are accepted here, and a thread cannot suppress that warning.
    """
    Image.init()
    prefix, told = file.read(256), ""
    for kind in FORMATS:
        factory, accept = Image.OPEN.get(kind, (None, None))
        if factory is None:
            continue
        file.seek(0)
        try:
            if accept is not None and accept(prefix[:16]) is not True:
                continue
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # as in Image.open: another format
            told = told or f"{kind}: {first_line(error)}"
    text = prefix.lstrip(b"\xef\xbb\xbf \r\n\t")
    other = next((kind for at, magic, kind in _OTHERS if (prefix[at:] if at else text).startswith(magic)), None)
    reason = "it is empty" if not prefix else f"it is {other}" if other else told or "it is not a picture"
    raise InputError(f"{name} cannot be read ({reason}): {_REMEDY}")


def _check(image: Image.Image, name: str) -> None:
    """Raise InputError for what must not be decoded: other formats, which may start programs, pictures that Pillow
    misreads, thumbnails, and what does not fit in memory."""
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{name} of {width}x{height} pixels is empty: give a picture")
    unread, kind = _is_unread(image), image.format
    if unread and kind not in (*FORMATS, "MPO", None):
        raise InputError(f"{name} cannot be read (it is {kind}): {_REMEDY}")
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (1,))) > 8 and tags.get(_SAMPLES, 1) > 1:
        raise InputError(
            f"{name} is a TIFF of more than 8 bits with a plane for each colour, which Pillow misreads: "
            "save it with the colours side by side, or as PNG"
        )
    more = getattr(image, "n_frames", 1) > 1 or _PICTURES_BESIDE in tags
    if (tags.get(_REDUCED, 0) & 1 and more) or _DNG in tags:  # its first picture is a thumbnail
        raise InputError(f"{name} cannot be read (it is a raw photograph, or begins with a thumbnail): {_REMEDY}")
    each = 1
    if unread:
        each = _BYTES_PROGRESSIVE if "progressive" in image.info else _BYTES.get(kind, _BYTES_OTHERS)
    most = min(MOST, _DECODING // each)
    if width * height > most:
        size = f"{width * height / 1e6:.0f} megapixels ({width}x{height})"
        raise InputError(f"{name} has {size}, more than can be read: make it smaller than {most // 10**6} megapixels")


def _is_unread(image: Image.Image) -> bool:
    """Whether the pixels have not been decoded yet."""
    return bool(getattr(image, "tile", None)) or getattr(image, "_im", image) is None


def _factor(size: tuple[int, int]) -> int:
    """How many pixels become one in each direction, for a picture of this size."""
    return 1 if size[0] * size[1] <= _WHOLE else 2


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where it is missing or damaged."""
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF may raise anything, and is no reason to refuse the picture
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _orientation_by_header(image: Image.Image) -> int:
    """The orientation that is still to be applied to the size in the header."""
    if _ORIENTATION in getattr(image, "tag_v2", ()):
        return 1  # Pillow turns such a TIFF itself, and has already turned its size
    if image.format == "PNG" and _is_unread(image) and _has_metadata_after_pixels(image.fp):
        image.load()
    return _orientation(image)


def _has_metadata_after_pixels(file: Any) -> bool:
    """Whether a PNG file has EXIF or text chunks after its pixels, which Pillow reads only when it decodes."""
    before, behind = file.tell(), False
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if behind and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            behind = behind or kind == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(before)


def _of_array(values: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    """load_image for an array or a tensor."""
    (height, width), first = _layout(values, name)
    values = as_array(values, name)
    if height * width > MOST:
        most = MOST // 10**6
        raise InputError(f"{name} of {height}x{width} pixels is too large: make it smaller than {most} megapixels")
    pixels = to_bytes(np.moveaxis(values, 0, -1) if first else values, name).reshape(height, width, -1)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    return to_rgb(image, name, _factor(image.size))


def _layout(values: np.ndarray | torch.Tensor, name: str) -> tuple[tuple[int, int], bool]:
    """((height, width), whether channels come first)."""
    check_dense(values, name)
    shape, channels = tuple(values.shape), (1, 3, 4)
    first = (0, 2) if isinstance(values, torch.Tensor) else (2, 0)
    ends = [end for end in first if len(shape) == 3 and shape[end] in channels]
    if 0 in shape or not (len(shape) == 2 or ends):
        raise InputError(f"{name} is an array of shape {list(shape)}: give [H, W, 3] or [3, H, W]")
    leads = bool(ends) and ends[0] == 0
    return (shape[1:] if leads else shape[:2]), leads
