"""Picture files, written bit by bit where Pillow would make its own choices, and the pixels they show, by numpy."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from ppe_npu.data.pictures import image_size, lazy_image, load_image
from ppe_npu.evaluation.benchmarks.readers import decode_image

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types
SAMPLES = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}
ORIENTATION = 0x0112


def numbers(*shape: int, seed: int = 0, most: int = 255) -> np.ndarray:
    """Random whole numbers from 0 to most."""
    return np.random.default_rng(seed).integers(0, most + 1, shape)


def png(values: np.ndarray, kind: int, depth: int = 8, before: tuple = (), behind: tuple = ()) -> bytes:
    """A PNG file of values [H, W] or [H, W, samples], with chunks (name, data) before and after its pixels."""
    height, width = values.shape[:2]
    rows = values.reshape(height, width * SAMPLES[kind])
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = (rows[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = [np.packbits(row.astype(np.uint8)).tobytes() for row in bits.reshape(height, -1)]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in packed))
    return _png_file([(b"IHDR", header), *before, (b"IDAT", pixels), *behind, (b"IEND", b"")])


def empty_png(width: int, height: int, depth: int = 1) -> bytes:
    """A whole black PNG file of any size, made without its pixels in memory."""
    squeeze = zlib.compressobj(9)
    row = bytes(1 + -(-width * depth // 8))
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, GREY, 0, 0, 0)
    return _png_file([(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")])


def _png_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    pixels: bytes, bits: int, photometric: int, samples: int = 1, kind: int = 1, planar: int = 1, more: tuple = ()
) -> bytes:
    """A little-endian TIFF file of W x H pixels, in one strip or (planar 2) in one strip for each sample.

    Args:
        photometric: 0 if 0 means white, 1 if 0 means black, 2 for RGB. kind: 1 for whole, 3 for floating-point numbers.
        more: further (tag, value) pairs.
    """
    strips = samples if planar == 2 else 1
    each, tags = len(pixels) // strips, {}
    behind = 8 + 2 + 12 * (11 + len(more)) + 4
    lists = struct.pack(f"<{2 * samples}H", *[bits] * samples, *[kind] * samples)
    places = struct.pack(f"<{2 * strips}I", *(behind + 100 + each * n for n in range(strips)), *[each] * strips)
    for tag, count, value, at in (
        (256, 1, W, 0), (257, 1, H, 0), (258, samples, bits, behind), (259, 1, 1, 0), (262, 1, photometric, 0),
        (277, 1, samples, 0), (278, 1, H, 0), (284, 1, planar, 0), (339, samples, kind, behind + 2 * samples),
        *((tag, 1, value, 0) for tag, value in more),
    ):  # fmt: skip
        inside = count * 2 <= 4
        tags[tag] = struct.pack("<HHI", tag, 3, count) + (
            struct.pack("<HH", value, value if count == 2 else 0) if inside else struct.pack("<I", at)
        )
    lists = lists.ljust(20, b"\0")
    for tag, at in ((273, 0), (279, 4 * strips)):
        value = struct.unpack_from("<I", places, at)[0] if strips == 1 else behind + 20 + at
        tags[tag] = struct.pack("<HHII", tag, 4, strips, value)
    entries = b"".join(tags[tag] for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + (lists + places).ljust(100, b"\0") + pixels


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[ORIENTATION] = orientation
    return made


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours [H, W, 3 or 1] with alpha [H, W], all 0 to 255, laid on white: [H, W, 3], rounded to the nearest."""
    colours, alpha = np.broadcast_to(colours, (*alpha.shape, 3)).astype(np.int64), alpha[..., None].astype(np.int64)
    return (2 * (colours * alpha + 255 * (255 - alpha)) + 255) // 510


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """How pixels [H, W, 3] that are stored with this orientation are shown, by EXIF's table."""
    turns: dict[int, Callable] = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: p[::-1].transpose(1, 0, 2),  # the first row becomes the last column
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: p[:, ::-1].transpose(1, 0, 2),
    }
    return turns[orientation](stored)


def swapped_profile() -> bytes:
    """An ICC profile in which sRGB's red and green are swapped."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    return data.replace("sRGB".encode("utf-16-be"), "tRGB".encode("utf-16-be"))


def ways(data: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    """(how, value) for every way in which one file may be given as a picture."""
    path.write_bytes(data)
    yield "str", str(path)
    yield "pathlib", path
    yield "bytes", data
    yield "memoryview", memoryview(data)
    yield "a view with gaps", memoryview(bytes(byte for byte in data for _ in range(2)))[::2]
    yield "a file in memory", io.BytesIO(data)
    with path.open("rb") as file:
        file.seek(len(data) // 2)
        yield "an open file", file
        assert file.tell() == len(data) // 2
    yield "row of bytes", {"bytes": data, "path": "somewhere.png"}
    yield "row of a path", {"bytes": None, "path": str(path)}
    yield "opened", Image.open(path)
    yield "opened from memory", Image.open(io.BytesIO(data))
    loaded = Image.open(path)
    loaded.load()
    yield "opened and read", loaded
    yield "copied", Image.open(path).copy()
    yield "lazy", lazy_image(data)
    yield "a row's bytes", decode_image({"bytes": data, "path": None}, "row 1")
    yield "a row's base64", decode_image(base64.encodebytes(data).decode(), "row 1")


# -- pictures of 6 x 9 pixels, and what they show

H, W = 6, 9
RGBA = numbers(H, W, 4)
DEEP = numbers(H, W, seed=1, most=65_535)
BYTES = numbers(H, W, seed=2)
RGB = numbers(H, W, 3, seed=3)
INDICES = numbers(H, W, seed=4, most=3)
COLOURS = numbers(4, 3, seed=5)
CLEAR = np.array([0, 90, 255, 17])


def image(values: np.ndarray, mode: str) -> Image.Image:
    """A Pillow picture of these values in this mode."""
    kinds = {"I": np.int32, "F": np.float32, "I;16": np.uint16}
    return Image.frombytes(mode, (W, H), values.astype(kinds.get(mode, np.uint8)).tobytes())


def with_palette(mode: str = "P") -> Image.Image:
    made = image(INDICES, "P")
    made.putpalette(COLOURS.astype(np.uint8).tobytes())
    return made


def two_frames(kind: str, **options) -> bytes:
    """An animation: the RGBA picture, then another."""
    second = Image.new("RGBA", (W, H), "red")
    return saved(image(RGBA, "RGBA"), kind, save_all=True, append_images=[second], **options)


def keyed(values: np.ndarray, key: np.ndarray | int, shown: np.ndarray) -> np.ndarray:
    """What is shown: white where the values equal the key colour, `shown` elsewhere."""
    same = (values == key).reshape(H, W, -1).all(-1)
    return np.where(same[..., None], 255, shown)


def hard(values: np.ndarray) -> np.ndarray:
    """RGBA values whose alpha is set to 0 or 255."""
    return np.concatenate([values[..., :3], np.where(values[..., 3:] > 127, 255, 0)], axis=-1)


def big(values: np.ndarray) -> bytes:
    return np.asarray(values).astype(">u2").tobytes()


DEEP_RGB, DEEP_RGBA = numbers(H, W, 3, seed=6, most=65_535), numbers(H, W, 4, seed=7, most=65_535)
BITS = {1: BYTES >> 7, 2: BYTES >> 6, 4: BYTES >> 4}
CMYK = numbers(H, W, 4, seed=8)
FILES = {
    "RGB": (png(RGB, COLOUR), RGB),
    "RGBA": (png(RGBA, COLOUR_ALPHA), on_white(RGBA[..., :3], RGBA[..., 3])),
    "LA": (png(RGBA[..., :2], GREY_ALPHA), on_white(RGBA[..., :1], RGBA[..., 1])),
    "L": (png(BYTES, GREY), grey(BYTES)),
    "RGBA, 16 bits": (
        png(DEEP_RGBA, COLOUR_ALPHA, 16), on_white(DEEP_RGBA[..., :3] // 256, DEEP_RGBA[..., 3] // 256),
    ),
    "RGB, 16 bits": (png(DEEP_RGB, COLOUR, 16), DEEP_RGB // 256),
    "grey, 16 bits": (png(DEEP, GREY, 16), grey(DEEP // 256)),
    "palette": (png(INDICES, PALETTE, 2, [(b"PLTE", bytes(COLOURS.ravel().tolist()))]), COLOURS[INDICES]),
    "palette with alpha": (
        png(INDICES, PALETTE, 2, [(b"PLTE", bytes(COLOURS.ravel().tolist())), (b"tRNS", bytes(CLEAR.tolist()))]),
        on_white(COLOURS[INDICES], CLEAR[INDICES]),
    ),
    "palette with a clear colour": (
        png(INDICES, PALETTE, 2, [(b"PLTE", bytes(COLOURS.ravel().tolist())), (b"tRNS", b"\xff\0\xff\xff")]),
        keyed(INDICES, 1, COLOURS[INDICES]),
    ),
    "RGB with a key": (png(RGB, COLOUR, 8, [(b"tRNS", big(RGB[2, 3]))]), keyed(RGB, RGB[2, 3], RGB)),
    "RGB, 16 bits, with a key": (
        png(DEEP_RGB, COLOUR, 16, [(b"tRNS", big(DEEP_RGB[2, 3]))]), keyed(DEEP_RGB, DEEP_RGB[2, 3], DEEP_RGB // 256),
    ),
    "L with a key": (png(BYTES, GREY, 8, [(b"tRNS", big(BYTES[1, 1]))]), keyed(BYTES, BYTES[1, 1], grey(BYTES))),
    "grey, 16 bits, with a key": (
        png(DEEP, GREY, 16, [(b"tRNS", big(DEEP[1, 1]))]), keyed(DEEP, DEEP[1, 1], grey(DEEP // 256)),
    ),
    **{f"{depth} bits": (png(BITS[depth], GREY, depth), grey(BITS[depth] * (255 // (2**depth - 1)))) for depth in BITS},
    **{
        f"{depth} bits with the key {key}": (
            png(BITS[depth], GREY, depth, [(b"tRNS", big(np.array(key)))]),
            keyed(BITS[depth], key, grey(BITS[depth] * (255 // (2**depth - 1)))),
        )
        for depth in BITS for key in (0, 1, 2**depth - 1)
    },
    "WebP with alpha": (
        saved(image(RGBA, "RGBA"), "WEBP", lossless=True, exact=True), on_white(RGBA[..., :3], RGBA[..., 3]),
    ),
    "animated PNG": (two_frames("PNG"), on_white(RGBA[..., :3], RGBA[..., 3])),
    "animated WebP": (two_frames("WEBP", lossless=True, exact=True), on_white(RGBA[..., :3], RGBA[..., 3])),
    "GIF with a clear colour": (
        saved(with_palette(), "GIF", transparency=2), keyed(INDICES, 2, COLOURS[INDICES]),
    ),
    "animated GIF": (
        saved(with_palette(), "GIF", transparency=2, save_all=True, append_images=[Image.new("P", (W, H), 1)]),
        keyed(INDICES, 2, COLOURS[INDICES]),
    ),
    "TIFF with alpha": (saved(image(RGBA, "RGBA"), "TIFF"), on_white(RGBA[..., :3], RGBA[..., 3])),
    "TIFF of 16 bits": (saved(image(DEEP, "I;16"), "TIFF"), grey(DEEP // 256)),
    "TIFF of 16 bits, the other end first": (
        saved(Image.frombytes("I;16B", (W, H), DEEP.astype(">u2").tobytes()), "TIFF"), grey(DEEP // 256),
    ),
    "TIFF of 32 bits": (saved(image(DEEP, "I"), "TIFF"), grey(DEEP // 256)),
    "TIFF of 32 bits with values of 8": (saved(image(BYTES, "I"), "TIFF"), grey(BYTES)),
    "float TIFF to 1": (saved(image(BYTES / 255, "F"), "TIFF", compression="tiff_lzw"), grey(BYTES)),
    "float TIFF to 255": (saved(image(BYTES, "F"), "TIFF"), grey(BYTES)),
    "float TIFF to 65535": (saved(image(DEEP, "F"), "TIFF"), grey(DEEP // 256)),
    "CMYK TIFF": (
        saved(image(CMYK, "CMYK"), "TIFF"),
        np.rint((255 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255).astype(int),
    ),
    "BMP": (saved(image(RGB, "RGB"), "BMP"), RGB),
    "PPM": (saved(image(RGB, "RGB"), "PPM"), RGB),
    "PPM of 16 bits": (b"P5 %d %d 65535 " % (W, H) + big(DEEP), grey(DEEP // 256)),
    "another profile": (saved(image(RGB, "RGB"), "PNG", icc_profile=swapped_profile()), RGB[..., [1, 0, 2]]),
    "another profile with alpha": (
        saved(image(RGBA, "RGBA"), "PNG", icc_profile=swapped_profile()), on_white(RGBA[..., [1, 0, 2]], RGBA[..., 3]),
    ),
    "another profile and a palette": (
        saved(with_palette(), "PNG", icc_profile=swapped_profile()), COLOURS[INDICES][..., [1, 0, 2]],
    ),
    "a profile of another kind": (saved(image(BYTES, "L"), "PNG", icc_profile=swapped_profile()), grey(BYTES)),
    "the profile of sRGB": (
        saved(image(RGB, "RGB"), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        RGB,
    ),
    "a damaged profile": (saved(image(RGB, "RGB"), "PNG", icc_profile=b"no profile"), RGB),
}  # fmt: skip
ROUNDED = {  # Pillow keeps colours in 8 bits, and its fixed-point conversions are off by one
    "another profile": 2, "another profile with alpha": 2, "another profile and a palette": 2, "CMYK TIFF": 1,
}  # fmt: skip


def check(given, expected: np.ndarray, tolerance: int = 0) -> None:
    """Checks that the picture shows what is expected, and that its size is known before it is loaded."""
    size = image_size(given)
    shown = load_image(given)
    assert shown.mode == "RGB"
    assert size == expected.shape[:2] == shown.size[::-1]
    assert np.abs(np.asarray(shown, dtype=int) - expected).max() <= tolerance
