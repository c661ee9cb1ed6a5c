"""Pages of a PDF as pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ppe_npu.errors import InputError, first_line
from ppe_npu.files import check_regular
from ppe_npu.utils.optional import optional

DPI = 144  # dots per inch; a point of a PDF is 1/72 of an inch
LARGEST = 50_000_000  # pixels of a page; one of A0 at 144 dots per inch has 32 million
_ONE_AT_A_TIME = threading.RLock()  # PDFium is not thread-safe
# Forking waits for the lock; otherwise a child might inherit PDFium amid its work, and a lock that is never released.
os.register_at_fork(
    before=_ONE_AT_A_TIME.acquire, after_in_parent=_ONE_AT_A_TIME.release, after_in_child=_ONE_AT_A_TIME.release
)


def num_pages(path: Path) -> int:
    """Number of pages of a document.

    Raises:
        InputError: pypdfium2 is not installed, or the file is no PDF.
    """
    with _ONE_AT_A_TIME, _opened(path) as document:
        return len(document)


def page_images(path: Path, numbers: Iterable[int], longest: int | None = None) -> list[Image.Image]:
    """RGB pictures of pages, numbered from 1.

    Args:
        longest: pixels of a page's longer side; None: 144 dots per inch.

    Raises:
        InputError: as num_pages(); or a page does not exist, cannot be drawn, or has more than 50 million pixels.
    """
    with _ONE_AT_A_TIME, _opened(path) as document:
        return [_drawn(document, number, longest, path) for number in numbers]


def _opened(path: Path) -> Any:
    pdfium = optional("pypdfium2", f"reading {path.name}", "ppe-npu[eval]")
    check_regular(path)
    try:
        return pdfium.PdfDocument(path)
    except (pdfium.PdfiumError, OSError) as error:
        raise InputError(f"{path} cannot be read as PDF ({first_line(error)}): download it again") from error


def _drawn(document: Any, number: int, longest: int | None, path: Path) -> Image.Image:
    import pypdfium2 as pdfium

    if not 1 <= number <= len(document):
        raise InputError(f"{path} has no page {number}, only {len(document)}: download it again")
    try:
        page = document[number - 1]
        scale = DPI / 72 if longest is None else longest / max(page.get_size())
        width, height = (side * scale for side in page.get_size())
        if width * height > LARGEST:
            size = f"{width * height:.0f} pixels at {scale * 72:.0f} dots per inch"
            raise InputError(f"{path} page {number} has {size}: at most {LARGEST} are drawn")
        return page.render(scale=scale).to_pil().convert("RGB")
    except pdfium.PdfiumError as error:
        raise InputError(f"{path} page {number} cannot be drawn ({first_line(error)}): download it again") from error
