"""A file of JSON lines to which several processes append, and which each of them may leave half written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ppe_npu.errors import InputError
from ppe_npu.evaluation.rows import BOM, Row, encode_rows, parse
from ppe_npu.files import check_regular, write_whole, writing

Check = Callable[[Row], str | None]  # returns what is wrong with a row; None: nothing


class Lines:
    """A file of JSON lines to which processes append under a common lock.

    Args:
        path: the path of the file.
        check: returns what is wrong with a row, or None.
        remedy: what an error message advises for a wrong line.
    """

    def __init__(self, path: Path, check: Check, remedy: str) -> None:
        self.path, self._check, self._remedy = path, check, remedy
        self._read, self._count = 0, 0  # bytes and lines read so far

    def new(self) -> list[Row]:
        """The lines that were added since the last call; see pairs()."""
        return [row for row, _ in self.pairs()]

    def pairs(self) -> list[tuple[Row, bytes]]:
        """(row, its bytes) of the lines that were added since the last call.

        A last line that was cut off by a kill is removed from the file; whole lines are never changed, even wrong ones.

        Raises:
            InputError: a line is wrong; the message names file and line.
        """
        check_regular(self.path)
        with writing(self.path), open(self.path, "a+b") as file:
            # "a+" may create the file, so NFS asks the server; opening for reading might consult a stale cache.
            file.seek(self._read)
            data = file.read()
        if self._read == 0 and data.startswith(BOM):
            data, self._read = data.removeprefix(BOM), len(BOM)
        end = data.rfind(b"\n") + 1
        found = [self._row(line, number) for number, line in enumerate(data[:end].split(b"\n")[:-1], self._count + 1)]
        last = data[end:]
        if last:
            found.append(self._finish(last, self._read + end))
        kept = [pair for pair in found if pair is not None]
        self._read += end if not last or found[-1] is None else len(data) + 1
        self._count += data.count(b"\n") + (1 if last and found[-1] is not None else 0)
        return kept

    def _row(self, line: bytes, number: int) -> tuple[Row, bytes] | None:
        """(row, line), or None for a blank line."""
        if not line.strip():
            return None
        row, reason = parse(line)
        reason = reason or self._check(row)
        if reason:
            raise InputError(f"{self.path} line {number} {reason}: {self._remedy}")
        return row, line

    def _finish(self, last: bytes, at: int) -> tuple[Row, bytes] | None:
        """Complete a last line that lacks its newline; one that was cut off is removed from the file instead (None)."""
        cut = last.lstrip().startswith(b"{") and parse(last)[0] is None
        blank = not last.strip(b"\0 \t\r\n")  # after a power cut a file may end in zeros
        found = None if cut or blank else self._row(last, self._count + 1)
        with writing(self.path):
            if found is None:
                os.truncate(self.path, at)
            else:
                with open(self.path, "ab", buffering=0) as file:
                    file.write(b"\n")
        return found

    def append(self, rows: Iterable[Row]) -> None:
        """Append lines. The file's last line must be whole, so call new() first.

        Closing the file makes the lines visible on other machines.

        Raises:
            InputError: writing failed, for example because the disk is full; lines that were written whole stay.
        """
        data = encode_rows(rows)
        with writing(self.path), open(self.path, "ab", buffering=0) as file:
            start = os.fstat(file.fileno()).st_size
            try:
                write_whole(file, data)
            except OSError:
                written = os.fstat(file.fileno()).st_size - start
                with contextlib.suppress(OSError):  # if this fails, the next reader removes the half line
                    os.truncate(self.path, start + data[:written].rfind(b"\n") + 1)
                raise

    def sync(self) -> None:
        """Wait until appended lines are on the disk. This needs no lock."""
        with writing(self.path), open(self.path, "ab") as file:
            os.fsync(file.fileno())
