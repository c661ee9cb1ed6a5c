"""Files of published data sets -> rows: json, jsonl, csv, tsv, parquet; and pictures stored in them as bytes."""

from __future__ import annotations

import base64
import binascii
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ppe_npu.data.pictures import lazy_image
from ppe_npu.errors import InputError, first_line, shown
from ppe_npu.files import check_regular
from ppe_npu.utils.optional import optional

Row = dict[str, Any]

_TAG = re.compile("<[^<>]*>")  # such as <font color="white"> in subtitles


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({first_line(error)}): download it again") from error


def read_jsonl(path: Path) -> list[Row]:
    """One row per line, skipping blank lines. Only a line feed ends a line; JSON may contain other line separators."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {number} is not JSON ({first_line(error)}): download it again") from error
    return rows


def read_table(path: Path) -> list[Row]:
    """Rows of a .tsv or .csv file with a header line; all values are texts, including whole pictures in base64."""
    check_regular(path)
    csv.field_size_limit(sys.maxsize)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            _check_columns(path, rows.fieldnames or ())
            return list(rows)
    except InputError:
        raise
    except (ValueError, csv.Error) as error:  # not UTF-8, or a line that is no row
        raise InputError(f"{path} is not a table ({first_line(error)}): download it again") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put before it.

    Raises:
        InputError: it is no regular file, or not UTF-8.
    """
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise InputError(f"{path} is not UTF-8 ({first_line(error)}): download it again") from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise InputError if a column occurs twice, because a row could hold only one of the two."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise InputError(f"{path} has the column {shown(twice[0])} twice: download it again")


class Parquet:
    """Rows of parquet files; large columns, such as pictures, stay on disk until one of their cells is read.

    Args:
        paths: files that are read as one table.
        large: columns that are not in rows; cell() reads them.

    Raises:
        InputError: pyarrow is not installed, or a file is not parquet.
    """

    def __init__(self, paths: Iterable[Path], large: Sequence[str] = ()) -> None:
        pyarrow, parquet = (optional(m, "reading parquet", "ppe-npu[eval]") for m in ("pyarrow", "pyarrow.parquet"))
        self.rows: list[Row] = []
        self._places: list[tuple[Path, int, int]] = []  # (file, row group, row in the group) of each row
        self._held: tuple[Any, Any] = (None, None)
        for path in paths:
            check_regular(path)
            try:
                file = parquet.ParquetFile(path)
                _check_columns(path, file.schema_arrow.names)
                small = [name for name in file.schema_arrow.names if name not in large]
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, columns=small).to_pylist()
                    self.rows += rows
                    self._places += [(path, group, at) for at in range(len(rows))]
            except InputError:
                raise
            except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a text that is not UTF-8
                raise InputError(
                    f"{path} cannot be read as parquet ({first_line(error)}): download it again"
                ) from error

    def path(self, number: int) -> Path:
        """The file that contains a row."""
        return self._places[number][0]

    def cell(self, number: int, column: str) -> Any:
        """One value of a large column. Its whole row group is read, so that rows in order cost one read per group."""
        import pyarrow.parquet as parquet

        path, group, at = self._places[number]
        if self._held[0] != (path, group, column):
            file = parquet.ParquetFile(path)
            if column not in file.schema_arrow.names:
                raise InputError(f"{path} has no column {column}: download it again")
            table = file.read_row_group(group, columns=[column])
            self._held = ((path, group, column), table.column(column))
        return self._held[1][at].as_py()


def decode_image(value: Any, where: str) -> Image.Image:
    """A picture in a row as upright RGB; the value may be {"bytes": ...} as written by the datasets library, bytes, or
    base64 text. Only its header is read here; pixels are decoded when they are used.

    Raises:
        InputError: the value is no picture; this may show only when it is decoded. `where` names it in the message.
    """
    name = f"the image of {where}"
    if isinstance(value, str):
        try:
            value = base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{name} cannot be read ({first_line(error)}): download the data again") from error
    elif not isinstance(value, (bytes, dict)):
        raise InputError(f"{name} cannot be read (a {type(value).__name__}, not bytes): download the data again")
    return lazy_image(value, name)


def read_srt(path: Path) -> list[str]:
    """The texts of a SubRip file, one per subtitle, without times and markup."""
    check_regular(path)
    texts = []
    for block in path.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n").split("\n\n"):
        lines = block.strip().split("\n")
        at = next((number for number, line in enumerate(lines) if "-->" in line), None)
        text = "" if at is None else _TAG.sub("", " ".join(lines[at + 1 :]))
        texts += [" ".join(text.split())] if text.strip() else []
    return texts
