"""The same picture gives the same pixels however it is given: modes x ways, orientations x ways, against numpy."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
import torch
from picture_files import (
    BYTES,
    CLEAR,
    COLOUR,
    COLOURS,
    DEEP,
    DEEP_RGB,
    FILES,
    INDICES,
    RGB,
    RGBA,
    ROUNDED,
    H,
    W,
    big,
    check,
    exif,
    grey,
    image,
    numbers,
    on_white,
    png,
    saved,
    tiff,
    upright,
    ways,
    with_palette,
)
from PIL import Image

from ppe_npu.data.pictures import image_size, load_image
from ppe_npu.errors import InputError


@pytest.mark.parametrize("name", FILES)
def test_a_file_shows_the_same_however_it_is_given(tmp_path, name):
    data, expected = FILES[name]
    for how, given in ways(data, tmp_path / "picture"):
        try:
            check(given, expected, ROUNDED.get(name, 0))
        except AssertionError as error:
            raise AssertionError(f"{name}, given as {how}") from error


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "PNG behind", "WEBP", "TIFF", "TIFF packed", "JPEG", "MPO", "AVIF"])
def test_every_orientation_is_turned_however_it_is_given(tmp_path, kind, orientation):
    stored, tag = image(RGB, "RGB"), exif(orientation)
    if kind == "PNG behind":
        data = png(RGB, COLOUR, behind=[(b"eXIf", tag.tobytes().removeprefix(b"Exif\0\0"))])
    elif kind == "TIFF packed":
        data = saved(stored, "TIFF", exif=tag, compression="tiff_lzw")
    elif kind == "MPO":
        data = saved(stored, "MPO", exif=tag, save_all=True, append_images=[stored.copy()], quality=95)
    else:
        data = saved(stored, kind, exif=tag, **({"lossless": True} if kind == "WEBP" else {"quality": 95}))
    # Pillow tells what a lossy format stored, from a file without an orientation.
    lossy = kind in ("JPEG", "MPO", "AVIF")
    pixels = np.asarray(Image.open(io.BytesIO(saved(stored, kind, quality=95))).convert("RGB")) if lossy else RGB
    for how, given in ways(data, tmp_path / "picture"):
        try:
            check(given, upright(pixels, orientation))
        except AssertionError as error:
            raise AssertionError(f"{kind} of orientation {orientation}, given as {how}") from error


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "RGBX", "CMYK", "I;16"])
def test_a_plain_tiff_that_pillow_opened_is_the_file(tmp_path, mode, orientation):
    """Pillow maps the rows of these modes into memory by the size of the turned picture, which shuffles them."""
    stored = with_palette() if mode == "P" else image({"L": BYTES, "I;16": DEEP}.get(mode, RGBA), mode)
    (tmp_path / "a.tiff").write_bytes(saved(stored, "TIFF", exif=exif(orientation)))
    opened = Image.open(tmp_path / "a.tiff")
    check(opened, upright(np.asarray(load_image(saved(stored, "TIFF"))), orientation))
    assert opened.filename == str(tmp_path / "a.tiff")


@pytest.mark.parametrize("most", [200, 300, 60_000])
def test_a_picture_of_16_bits_is_as_dark_in_every_format(tmp_path, most):
    """Pillow gives grey PNM as 32-bit numbers, whose values alone do not tell them from 8-bit ones."""
    values = numbers(H, W, seed=most, most=most)
    plain = b"P2 %d %d 65535 " % (W, H) + " ".join(map(str, values.flatten())).encode()
    files = {"P5": b"P5 %d %d 65535 " % (W, H) + big(values), "P2": plain, "PNG": png(values, 0, 16)}
    for kind, data in files.items():
        for way, given in ways(data, tmp_path / kind):
            if way != "copied":  # Pillow's copy does not know what format it had
                assert np.array_equal(np.array(load_image(given)), grey(values // 256)), (kind, way)


@pytest.mark.parametrize("key", [(0, 0, 200), (513, 770, 255), (0, 0, 0)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_clear_colour_of_16_bits_is_meant_in_all_of_them(tmp_path, key, orientation):
    """Pillow passes on only the upper 8 bits of each value, which other colours share."""
    values = DEEP_RGB.copy()
    values[0, :4] = key, np.array(key) ^ 1, np.array(key) * 256 % 65536, np.array(key) + 255
    data = png(values, COLOUR, 16, [(b"tRNS", big(np.array(key))), (b"eXIf", exif(orientation).tobytes()[6:])])
    shown = values // 256
    shown[(values == key).all(-1)] = 255
    for way, given in ways(data, tmp_path / "a.png"):
        if way not in ("copied", "opened and read"):  # Pillow has kept only the upper bits
            check(given, upright(shown, orientation)), way


SHADES = BYTES / 255
TIFFS = {  # file, and what it shows
    "white is 0, 16 bits": (tiff(DEEP.astype("<u2").tobytes(), 16, 0), 255 - DEEP // 256),
    "black is 0, 16 bits": (tiff(DEEP.astype("<u2").tobytes(), 16, 1), DEEP // 256),
    "white is 0, 8 bits": (tiff(BYTES.astype("u1").tobytes(), 8, 0), 255 - BYTES),
    "white is 0, floating point": (tiff(SHADES.astype("<f4").tobytes(), 32, 0, kind=3), 255 - BYTES),
    "12 bits": (
        tiff(
            b"".join(np.packbits((row[:, None] >> np.arange(15, 3, -1) & 1).ravel()).tobytes() for row in DEEP), 12, 1
        ),
        DEEP // 256,
    ),
}


@pytest.mark.parametrize("name", TIFFS)
def test_a_scan_of_many_bits_is_as_bright_as_its_file_says(tmp_path, name):
    """Pillow passes more than 8 bits on as stored: inverted where white is 0, and 12 of 16 bits as nearly black."""
    data, shown = TIFFS[name]
    for way, given in ways(data, tmp_path / "scan"):
        if way != "copied":  # Pillow's copy does not know what format it had
            assert np.array_equal(np.array(load_image(given)), grey(shown)), way


def test_planes_of_many_bits_which_pillow_misreads_are_refused(tmp_path):
    planes = DEEP_RGB.transpose(2, 0, 1)
    assert np.array_equal(load_image(tiff((planes >> 8).astype("u1").tobytes(), 8, 2, 3, planar=2)), DEEP_RGB >> 8)
    (tmp_path / "a.tiff").write_bytes(tiff(planes.astype("<u2").tobytes(), 16, 2, 3, planar=2))
    for given in (tmp_path / "a.tiff", (tmp_path / "a.tiff").read_bytes(), Image.open(tmp_path / "a.tiff")):
        for read in (load_image, image_size):
            with pytest.raises(InputError, match="is a TIFF of more than 8 bits with a plane for each colour"):
                read(given)
    counted = struct.pack("<HHI", 258, 3, 3), struct.pack("<HHIHH", 258, 3, 1, 16, 0)  # one number for all three
    data = (tmp_path / "a.tiff").read_bytes()
    at = data.index(counted[0])
    with pytest.raises(InputError, match="is a TIFF of more than 8 bits with a plane for each colour"):
        load_image(data[:at] + counted[1] + data[at + 12 :])


@pytest.mark.parametrize("more", [((254, 1), (330, 8)), ((254, 3), (330, 8)), ((50706, 1),)], ids=str)
def test_a_thumbnail_is_not_taken_for_the_photograph(more):
    """Raw photographs are TIFF files whose first picture is a thumbnail; a thumbnail alone is a picture."""
    pixels = RGB.astype("u1").tobytes()
    for kind in (0, 1):
        assert np.array_equal(load_image(tiff(pixels, 8, 2, 3, more=((254, kind),))), RGB)
    with pytest.raises(InputError, match=r"cannot be read \(it is a raw photograph, or begins with a thumbnail\)"):
        load_image(tiff(pixels, 8, 2, 3, more=more))


def test_pixels_of_a_known_format_that_are_not_read_are_named_so(tmp_path):
    data = tiff(BYTES.astype("<f8").tobytes(), 64, 1, kind=3)
    with pytest.raises(InputError, match=r"cannot be read \(TIFF: unknown pixel mode\): give a whole PNG"):
        load_image(data)


def test_open_files_that_are_none_to_read_twice(tmp_path):
    reading, writing = os.pipe()
    (tmp_path / "a.txt").write_text("x")
    closed = io.BytesIO(b"x")
    closed.close()
    with open(reading, "rb") as pipe, open("/dev/zero", "rb") as zero, open(tmp_path / "a.txt") as text:
        for given, words in ((pipe, "pipe"), (zero, "device"), (text, "opened for text"), (closed, "closed file")):
            with pytest.raises(InputError, match=words):
                load_image(given)
    os.close(writing)


@pytest.mark.parametrize("block", [b"Exif\0\0no tags", b"", exif(9).tobytes(), exif(0).tobytes()])
def test_a_damaged_or_foreign_orientation_turns_nothing(tmp_path, block):
    for _, given in ways(saved(image(RGB, "RGB"), "PNG", exif=block), tmp_path / "a.png"):
        check(given, RGB)


def test_pictures_that_only_pillow_holds():
    colour, alpha = RGBA[..., :3], RGBA[..., 3]
    check(image(RGBA, "RGBA").convert("RGBa"), on_white(colour, alpha))
    check(image(RGBA[..., :2], "LA").convert("La"), on_white(RGBA[..., :1], RGBA[..., 1]))
    clear = with_palette()
    clear.putpalette(np.concatenate([COLOURS, CLEAR[:, None]], axis=1).astype(np.uint8).tobytes(), "RGBA")
    check(clear, on_white(COLOURS[INDICES], CLEAR[INDICES]))
    check(with_palette().convert("PA"), COLOURS[INDICES])
    check(image(RGBA, "RGBX"), colour)
    for mode in ("I;16L", "I;16B", "I;16N"):
        kind = ">u2" if mode == "I;16B" else "=u2" if mode == "I;16N" else "<u2"
        check(Image.frombytes(mode, (W, H), DEEP.astype(kind).tobytes()), grey(DEEP // 256))
    saturated = np.stack([BYTES, np.full_like(BYTES, 0), BYTES], axis=-1)  # without saturation a colour is its value
    check(image(saturated, "HSV"), grey(BYTES))
    neutral = np.stack([BYTES, np.full_like(BYTES, 128), np.full_like(BYTES, 128)], axis=-1)
    check(image(neutral, "YCbCr"), grey(BYTES))
    turned = image(RGB, "RGB")
    turned.getexif()[0x0112] = 6
    check(turned, upright(RGB, 6))
    odd = Image.new("L", (2, 2))
    odd._mode = "BGR;15"  # a mode of older Pillow releases
    with pytest.raises(InputError, match="mode BGR;15, which are not supported"):
        load_image(odd)


def test_lab_is_brought_to_srgb():
    """Grey of lightness L has, by CIE's formula, the luminance ((L + 16) / 116)^3, which sRGB's curve encodes."""
    lightness = np.linspace(10, 100, H * W).reshape(H, W)
    lab = image(np.stack([np.rint(lightness * 2.55), np.zeros((H, W)), np.zeros((H, W))], axis=-1), "LAB")
    linear = ((np.rint(lightness * 2.55) / 2.55 + 16) / 116) ** 3
    check(lab, grey(np.rint(255 * (1.055 * linear ** (1 / 2.4) - 0.055)).astype(int)), tolerance=1)


@pytest.mark.parametrize("ink", [(0, 255, 255, 0), (255, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0), (0, 60, 0, 90)])
def test_a_cmyk_jpeg_is_not_inverted(tmp_path, ink):
    """Adobe writes inverted inks, and marks such files."""
    expected = np.array([(255 - part) * (255 - ink[3]) / 255 for part in ink[:3]])
    for _, given in ways(saved(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100), tmp_path / "a.jpg"):
        check(given, np.broadcast_to(np.rint(expected).astype(int), (16, 16, 3)), tolerance=4)


@pytest.mark.parametrize("turn", [np.asarray, lambda p: torch.from_numpy(p.copy())], ids=["array", "tensor"])
def test_arrays_and_tensors(turn):
    check(turn(RGB.astype(np.uint8)), RGB)
    check(turn(RGB.transpose(2, 0, 1).astype(np.uint8)), RGB)
    check(turn(RGB.transpose(2, 0, 1).astype(np.uint8))[:, ::2], RGB[::2])
    check(turn((RGB / 255).astype(np.float32)), RGB)
    check(turn(RGB.astype(np.float64)), RGB)
    check(turn(RGB), RGB)
    check(turn(DEEP_RGB.astype(np.int32)), DEEP_RGB // 256)
    check(turn(BYTES.astype(np.uint8)), grey(BYTES))
    check(turn(BYTES[None].astype(np.uint8)), grey(BYTES))
    check(turn(BYTES > 127), grey(np.where(BYTES > 127, 255, 0)))
    check(turn(RGBA.astype(np.uint8)), on_white(RGBA[..., :3], RGBA[..., 3]))
    check(turn(RGBA.transpose(2, 0, 1).astype(np.uint8)), on_white(RGBA[..., :3], RGBA[..., 3]))


@pytest.mark.filterwarnings("error")
def test_half_precision_brings_no_warning():
    for given in (BYTES.astype(np.float16), torch.from_numpy(BYTES).half()):
        assert (np.asarray(load_image(given)) == grey(BYTES)).all()


def test_more_of_arrays_and_tensors():
    check(DEEP.astype(np.uint16), grey(DEEP // 256))
    check(np.ones((H, W), np.uint8).view(np.matrix), np.ones((H, W, 3)))
    check(torch.from_numpy(RGB / 255).to(torch.float64).requires_grad_(), RGB)
    exact = torch.from_numpy(RGB // 2 * 2).to(torch.bfloat16)  # its numbers keep 8 bits
    check(exact, exact.float().numpy().astype(int))
    square = numbers(3, 5, 3, seed=9)
    check(square.astype(np.uint8), square)
    check(torch.from_numpy(square.astype(np.uint8)), square.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (image(DEEP - 1, "I") if DEEP.min() == 0 else image(DEEP - 40_000, "I"), "values from -"),
        (image(DEEP + 65_536, "I"), "values from 6"),
        (image(BYTES / 100 - 1, "F"), "values from -"),
        (image(np.where(BYTES > 250, np.nan, BYTES / 255), "F"), "values from nan"),
        (image(BYTES / 250, "F"), r"values from .* to 1\."),
        (np.full((4, 4, 3), np.inf), "values from .* to inf"),
        (torch.randn(3, 8, 8), "values from -"),
        (np.zeros((4, 4, 3), complex), "complex"),
        (np.array([["a"]]), "type <U1"),
        (np.zeros((5, 4, 2)), r"shape \[5, 4, 2\]"),
        (np.zeros((2, 3, 4, 4)), r"shape \[2, 3, 4, 4\]"),
        (np.zeros((0, 4, 3)), r"shape \[0, 4, 3\]"),
        (torch.empty(3, 4, 4, device="meta"), "without plain values"),
        (torch.zeros(4, 4).to_sparse(), "without plain values"),
        (Image.new("RGB", (0, 5)), "0x5 pixels is empty"),
        (5, "given as int"),
        (None, "given as NoneType"),
        (["a.png"], "given as list"),
        ({"bytes": None, "path": None}, "missing"),
        ({"image": "a.png"}, "missing"),
        ({"bytes": 5}, "is int"),
        (b"", "it is empty"),
        ("", "is an empty string"),
    ],
)  # fmt: skip
def test_what_has_no_rule_is_refused_in_one_line(given, words):
    with pytest.raises(InputError, match=words) as error:
        load_image(given)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)
