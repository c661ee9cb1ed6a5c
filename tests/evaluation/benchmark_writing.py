"""Helpers that write the tiny data sets of benchmark_files.py: pictures, clips, tables, and the register of writers."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fixtures import encode_clip
from PIL import Image

from ppe_npu.evaluation.benchmarks.table import published

write: dict[str, Callable[[Path], None]] = {}


def writes(*names: str):
    """Register a function under the folders that it fills."""

    def register(function):
        write.update(dict.fromkeys(names, function))
        return function

    return register


def folder_of(name: str) -> str:
    """The folder below the data root that a benchmark reads."""
    return published()[name].folder


def write_all(root: Path, name: str) -> Path:
    """Writes the data of one benchmark below root, if they are not there; returns root."""
    folder = root / folder_of(name)
    if not folder.exists():
        folder.mkdir(parents=True)
        write[folder.name](folder)
    return root


def picture(path: Path | None = None, shade: int = 0) -> bytes:
    """A PNG of 28x28 pixels, written if a path is given."""
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (shade, 80, 160)).save(buffer, "PNG")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


_CLIPS: dict[str, bytes] = {}


def clip(path: Path) -> None:
    """A video of 12 frames at 3 frames per second; encoded once, then copied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _CLIPS:
        made = path.with_suffix(".made.mp4")
        encode_clip(made, frames=12, fps=3, size=28)
        _CLIPS["bytes"] = made.read_bytes()
        made.unlink()
    path.write_bytes(_CLIPS["bytes"])


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def table(path: Path, rows: list[dict], delimiter: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        out.writeheader()
        out.writerows(rows)


def parquet(path: Path, rows: list[dict], row_group_size: int = 1) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)


def copy(source: Path, target: Path) -> Path:
    """Copies a data root to a folder that a test may change."""
    return Path(shutil.copytree(source, target, dirs_exist_ok=True))
