"""Files that are no pictures, damaged or very large: one line each, no program started, little memory; prompts, too."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from picture_files import (
    COLOUR,
    FILES,
    RGB,
    ROUNDED,
    H,
    W,
    check,
    empty_png,
    exif,
    image,
    numbers,
    png,
    saved,
    upright,
    ways,
)
from PIL import EpsImagePlugin, Image, ImageFile

from ppe_npu.data import colours, pictures
from ppe_npu.data.inputs import build_inputs
from ppe_npu.data.pictures import image_size, load_image
from ppe_npu.errors import InputError
from ppe_npu.evaluation.benchmarks.readers import decode_image


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28), "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "WMF"),
        (b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60), "EMF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"8BPS" + bytes(30), "PSD"),
        *(
            (b"\0\0\0\x18" + brand + bytes(30), "HEIC")
            for brand in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmsf1")
        ),
        *((data + bytes(30), "JPEG XL") for data in (b"\xff\n", b"\0\0\0\x0cJXL \r\n")),
        *((b"\0\0\0\x18" + brand + bytes(30), "a video") for brand in (b"ftypisom", b"ftypqt  ")),
        *((data + bytes(30), "a video") for data in (b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI LIST")),
        *(
            (data + bytes(30), kind)
            for data, kind in ((b"v/1\1", "OpenEXR"), (b"qoif", "QOI"), (b"PK\3\4", "a zip file"))
        ),
        (b"\0\0\0\x18ftypavis" + bytes(30), "AVIF, damaged or not supported by this Pillow"),
        (b"\0\0\0\x18ftypM4A " + bytes(30), "sound"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"anything", "not a picture"),
    ],
)
def test_other_formats_are_refused_by_name_before_a_program_starts(tmp_path, monkeypatch, data, kind):
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for given in (path, data, {"bytes": data}):
        with pytest.raises(InputError, match=rf"cannot be read \(it is {kind}\): give a whole PNG"):
            load_image(given)
    with pytest.raises(InputError, match=rf"the image of row 3 cannot be read \(it is {kind}\)"):
        decode_image(data, "row 3")


def test_an_opened_eps_is_refused_before_ghostscript_starts(monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
    opened = Image.open(io.BytesIO(saved(image(RGB, "RGB"), "EPS")))
    with pytest.raises(InputError, match=r"it is EPS"):
        load_image(opened)


def test_a_closed_picture_is_named(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(RGB, COLOUR))
    with Image.open(path) as opened:
        pass
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        load_image(opened)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_damaged_ones_end_in_one_line_however_they_are_given(tmp_path, kind):
    """Cut anywhere, and with noise anywhere, a picture is either shown or refused."""
    whole = saved(Image.fromarray(numbers(40, 40, 3, seed=1).astype(np.uint8)), kind)
    generator = np.random.default_rng(0)
    broken = [whole[:at] for at in range(1, len(whole), len(whole) // 12)]
    for at in generator.integers(0, len(whole) - 9, 12):
        broken.append(whole[:at] + generator.bytes(8) + whole[at + 8 :])
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about what it repaired
        for data in broken:
            (tmp_path / "a").write_bytes(data)
            for given in (tmp_path / "a", data, {"bytes": data}):
                try:
                    assert load_image(given).mode == "RGB"
                except InputError as error:
                    refused += "\n" not in str(error) or pytest.fail(str(error))
    assert refused > len(broken), "at least those that were cut, in three ways"


# -- large ones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "megapixels"), [(14_000, 196), (60_000, 3600)])
def test_a_gigantic_picture_is_refused_by_its_header_with_what_helps(tmp_path, monkeypatch, side, megapixels):
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    data = empty_png(side, 8)
    data = data[:16] + side.to_bytes(4, "big") * 2 + data[24:]  # claims this size, but ends early: nothing is decoded
    data = data.replace(data[29:33], zlib.crc32(data[12:29]).to_bytes(4, "big"), 1)
    words = rf"{megapixels} megapixels \({side}x{side}\), more than can be read: make it smaller than 178 megapixels"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _, given in [("path", tmp_path / "a.png"), ("bytes", data), ("row", {"bytes": data})]:
            (tmp_path / "a.png").write_bytes(data)
            for read in (load_image, image_size):
                with pytest.raises(InputError, match=words):
                    read(given)


def test_sizes_are_read_from_headers_alone(monkeypatch):
    decoded, turned = [], saved(image(RGB, "RGB"), "JPEG", exif=exif(6))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self))
    for name, (data, expected) in FILES.items():
        assert image_size(data) == expected.shape[:2], name
    assert image_size(turned) == (W, H)
    assert not decoded


def test_formats_whose_decoders_need_more_memory_are_read_up_to_less(monkeypatch):
    monkeypatch.setattr(pictures, "_DECODING", 2**24)
    large = Image.new("RGB", (2_000, 1_500))
    assert load_image(saved(large, "PNG")).size == large.size
    for kind, most in (("WEBP", 1), ("TIFF", 1), ("JPEG2000", 0)):
        words = rf"3 megapixels \(2000x1500\), more than can be read: make it smaller than {most} megapixels"
        with pytest.raises(InputError, match=words):
            load_image(saved(large, kind))
    assert load_image(saved(large, "JPEG")).size == large.size
    with pytest.raises(InputError, match="make it smaller than 1 megapixels"):
        load_image(saved(large, "JPEG", progressive=True))


def test_a_large_picture_brings_no_warning():
    data = empty_png(12_000, 9_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(data) == (4_500, 6_000)


@pytest.mark.parametrize("name", ["RGBA", "palette with alpha", "grey, 16 bits", "float TIFF to 1", "another profile"])
def test_what_is_converted_part_by_part_is_the_same(monkeypatch, name):
    data, expected = FILES[name]
    monkeypatch.setattr(colours, "_BAND", 2 * W)
    check(data, expected, ROUNDED.get(name, 0))


def test_of_very_many_pixels_four_become_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_WHOLE", H * W - 1)
    monkeypatch.setattr(colours, "_BAND", 2 * W)
    padded = np.pad(RGB.astype(float), ((0, 0), (0, 1), (0, 0)), mode="edge")  # at the edge two become one
    mean = padded.reshape(H // 2, 2, (W + 1) // 2, 2, 3).mean((1, 3))
    for orientation in (1, 6):
        data = saved(image(RGB, "RGB"), "PNG", exif=exif(orientation))
        for _, given in ways(data, tmp_path / "a.png"):
            expected = upright(np.rint(mean).astype(int), orientation)
            check(given, expected, tolerance=1)
    check(RGB.astype(np.uint8), np.rint(mean).astype(int), tolerance=1)


@pytest.mark.slow
def test_a_small_file_of_many_pixels_takes_little_memory(tmp_path):
    path = tmp_path / "plan.png"
    path.write_bytes(empty_png(13_300, 13_300))
    assert path.stat().st_size < 30_000
    code = (
        "import resource, sys; from ppe_npu.data.pictures import load_image\n"
        "assert load_image(sys.argv[1]).size == (6650, 6650)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(path)], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 2**30


# -- in prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RGBA", "palette with a clear colour", "grey, 16 bits", "float TIFF to 1", "LA"])
def test_a_prompt_sees_the_same_however_it_is_given(tmp_path, spelling_processors, name):
    processor = spelling_processors["qwen2_5_vl"]

    def seen(given):
        return build_inputs(processor, [[{"role": "user", "content": [{"type": "image", "image": given}]}]])

    data, expected = FILES[name]
    first = seen(expected.astype(np.uint8))
    for how, given in ways(data, tmp_path / "picture"):
        found = seen(given)
        assert all(torch.equal(found[key], first[key]) for key in first), how


def test_a_picture_on_its_side_counts_upright(tmp_path, spelling_processors):
    processor = spelling_processors["qwen2_5_vl"]
    data = saved(Image.new("RGB", (80, 64)), "JPEG", exif=exif(6))
    grids = []
    for _, given in ways(data, tmp_path / "a.jpg"):
        conversation = [{"role": "user", "content": [{"type": "image", "image": given}]}]
        grids.append(build_inputs(processor, conversation)["image_grid_thw"].tolist())
    assert grids == [[[1, 20, 16]]] * len(grids)
