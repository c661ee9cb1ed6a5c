"""Picture files of every kind with any bytes changed: the same pixels however they are given, or one line."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
from bounds import bounded
from mutations import dice
from picture_files import FILES, RGB, RGBA, exif, image, saved
from PIL import Image

from ppe_npu.data.pictures import image_size, load_image
from ppe_npu.errors import InputError

WHOLE = {name: data for name, (data, _) in FILES.items()} | {
    "JPEG": saved(image(RGB, "RGB"), "JPEG", exif=exif(6)),
    "progressive JPEG": saved(image(RGB, "RGB"), "JPEG", progressive=True),
    "two in a JPEG": saved(image(RGB, "RGB"), "MPO", save_all=True, append_images=[image(RGB, "RGB")]),
    "JPEG 2000": saved(image(RGBA, "RGBA"), "JPEG2000"),
    "AVIF": saved(image(RGBA, "RGBA"), "AVIF", exif=exif(8)),
    "lossy WebP": saved(image(RGBA, "RGBA"), "WEBP", exif=exif(3)),
    "packed TIFF": saved(image(RGB, "RGB"), "TIFF", compression="tiff_adobe_deflate", exif=exif(5)),
}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Changes some bytes, often in the header, or removes a part; a PNG may get matching checksums."""
    changed = bytearray(data)
    if draw.random() < 0.25:
        first, last = sorted(draw.randrange(len(data)) for _ in range(2))
        del changed[first:last]
    else:
        reach = len(data) if draw.random() < 0.7 else min(100, len(data))
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(reach)] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
    return _with_checksums(bytes(changed)) if data[:4] == b"\x89PNG" and draw.random() < 0.7 else bytes(changed)


def _with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks, as far as they can be followed, get the checksums of their content."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        end = at + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def seen(given: Any) -> tuple[tuple[int, int], bytes] | None:
    """(size, pixels) of a picture; None if it is refused."""
    try:
        size = image_size(given)
        shown = load_image(given)
    except InputError as error:
        said = str(error)
    else:
        assert (shown.mode, shown.size[::-1]) == ("RGB", size)
        return size, shown.tobytes()
    assert said.isprintable()
    assert len(said) < 1000
    return None


def check(name: str, path: Path, seed: int) -> bool:
    """Checks the law for one file; returns whether it is shown."""
    data = mutated(WHOLE[name], dice(seed, name))
    path.write_bytes(data)
    with warnings.catch_warnings(), bounded((name, seed)):
        warnings.simplefilter("ignore")  # Pillow's own, about what it repaired
        shown = seen(data)
        assert seen(path) == shown, (name, seed)
        assert seen({"bytes": data, "path": None}) == shown, (name, seed)
        try:
            opened = Image.open(io.BytesIO(data))
        except Exception:  # whatever Pillow's readers raise
            return shown is not None
        assert seen(opened) in (shown, None), (name, seed)
    return shown is not None


@pytest.mark.parametrize("rounds", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_pictures_with_any_bytes_changed(tmp_path, rounds):
    outcomes = [check(name, tmp_path / "a", seed) for seed in range(rounds) for name in WHOLE]
    assert len(outcomes) // 10 < sum(outcomes) < len(outcomes) * 9 // 10
