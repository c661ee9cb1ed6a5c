"""Pictures from disk, by Pillow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ppe_npu.data.paths import existing_file
from ppe_npu.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image


def load_image(path: str | Path) -> Image:
    """Read a picture as RGB, turned upright by its EXIF orientation.

    Raises:
        InputError: there is no such file, or it is no picture that Pillow can read.
    """
    from PIL import ImageOps

    with _open_image(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels by a picture's header, as it is stored: not turned upright, and nothing decoded.

    Raises:
        InputError: as load_image, but for what only decoding finds.
    """
    with _open_image(path) as image:
        return image.height, image.width


@contextlib.contextmanager
def _open_image(path: str | Path) -> Iterator[Image]:
    """A picture whose header was read; what goes wrong with it is an InputError."""
    from PIL import Image

    path = existing_file(path, "image")
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's readers raise what their formats suggest: struct.error, EOFError, ...
        reason = "it is not a picture" if isinstance(error, Image.UnidentifiedImageError) else first_line(error)
        raise InputError(f"image {path} cannot be read ({reason}): give a whole PNG, JPEG or WebP file") from error
