"""Processes share the samples of a run through its folder: no sample is left out, none is answered twice.

A process takes samples under a lock of the folder and records them in claims.jsonl; answers are appended to
predictions.jsonl under the same lock. While it works, a process also holds a lock of its own, which the kernel releases
when the process ends, however it ends: another process then takes the samples that the dead one had taken. The number
of processes need not be known; one may join or die at any time, on this machine or on another one that sees the folder.

NFS dictates two rules: files are only appended to, and are reopened for every read; and the names of processes are read
from claims.jsonl, because the folder's listing may be a minute old.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ppe_npu.errors import InputError, shown
from ppe_npu.evaluation.lines import Check, Lines
from ppe_npu.evaluation.rows import Row, encode_rows, has_sums, is_key, with_sums
from ppe_npu.files import check_regular, locked, write_bytes, write_json, writing
from ppe_npu.utils.launched import environment_number

Renew = Callable[[list[Row], bool | None], list[Row]]  # (rows, whether other code scored them; None: unknown)
_PATIENCE = 120.0  # seconds to wait for another machine's file; NFS caches listings for up to 60


def check_shared(output: Path, patience: float = _PATIENCE) -> None:
    """Make the output folder; if torchrun started the job on several machines, check that all of them see the folder.

    Raises:
        InputError: the first machine's mark file does not appear here within `patience` seconds.
        FileError: the folder cannot be made.
    """
    node = environment_number("GROUP_RANK", 0)
    if node == 0:
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
    if os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")):
        return
    job = "-".join(os.environ.get(key, "") for key in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))
    mark = output / f".seen-{''.join(c if c.isalnum() else '-' for c in job)}"
    if node == 0:
        with writing(mark):
            mark.touch()
        return
    deadline = time.monotonic() + patience
    while not mark.exists():
        if time.monotonic() > deadline:
            raise InputError(
                f"output {output} is not the folder that the first machine writes to: name one that all machines see"
            )
        time.sleep(min(1.0, patience / 10))


def add_sums(folder: Path) -> None:
    """Add checksums to answers that the first edition wrote without them.

    Call it before a new settings.json is written: its "protocol" marks a folder whose answers have sums (has_sums).

    Raises:
        InputError: the folder's file system has no locks.
        FileError: the answers cannot be written.
    """
    file, work = folder / "predictions.jsonl", folder / ".work"
    if has_sums(folder) or not file.exists():
        return
    with writing(work):
        work.mkdir(exist_ok=True)
    with locked(FileLock(work / "lock"), folder):
        data = file.read_bytes()
        if (summed := with_sums(data)) != data:
            write_bytes(file, summed)


class Share:
    """This process's part in a run. A context manager: inside it the process counts as alive.

    Args:
        folder: the run's folder.
        keys: every sample's index, in the order in which samples are to be taken.
        check: returns what is wrong with a row that another process wrote, or None; the index is checked here.
        code: mark of the code that scores answers; processes with other marks do not work at the same time. None: any.
        renew: the rows that are kept of what earlier processes stored; by default those of samples that did not fail.

    Raises:
        InputError: the folder's file system has no locks, or a line of its files is wrong; the message names it.
    """

    def __init__(
        self,
        folder: str | Path,
        keys: Sequence[int | str],
        check: Check | None = None,
        code: str | None = None,
        renew: Renew | None = None,
    ) -> None:
        self.folder, self._keys, self._check = Path(folder), keys, check
        self._code, self._renew = code, renew or _unfailed
        self._known: frozenset[int | str] = frozenset(keys)
        self._given: set[int | str] = set()  # indices that this process answered
        self._work = self.folder / ".work"
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock, self._alive = FileLock(self._work / "lock"), self._life(self._name)
        self._start()

    def _start(self) -> None:
        self._predictions = self._answers()
        remedy = f"delete {self._work} while no process works on this run; it holds no answers"
        self._claims = Lines(self._work / "claims.jsonl", _wrong_claim, remedy)
        self._open: OrderedDict[int | str, None] = OrderedDict.fromkeys(self._keys)
        self._taken: dict[int | str, str] = {}  # index -> name of the process that is answering it
        self._workers: dict[str, str | None] = {}  # name -> mark of its code

    def _answers(self) -> Lines:
        remedy = "delete that line to have its sample asked again, or choose another output"
        return Lines(self.folder / "predictions.jsonl", self._wrong_answer, remedy)

    def _wrong_answer(self, row: Row) -> str | None:
        index = row.get("index")
        if not is_key(index):
            return f"has the index {shown(index)}, which is neither a string nor an integer"
        if index not in self._known:
            return f"answers {shown(index)}, which is no sample of the benchmark"
        return None if self._check is None or index in self._given else self._check(row)

    # -- joining and leaving -----------------------------------------------------------------------------------------

    def __enter__(self) -> Share:
        with writing(self._work):
            self._work.mkdir(parents=True, exist_ok=True)
        with self._locked():
            working = {code for name, code in self._workers.items() if self._lives(name)}
            if not working:
                self._tidy()
            elif working - {self._code, None}:
                raise InputError(
                    f"output {self.folder}: another process works on this run with other code of the benchmark: wait "
                    "until it ends, or choose another output"
                )
            with writing(self._work):
                self._alive.acquire(timeout=0)
            self._claims.append([{"worker": self._name, **({"code": self._code} if self._code else {})}])
        return self

    def __exit__(self, *exc: Any) -> None:
        self._alive.release()

    def _tidy(self) -> None:
        """Remove what earlier processes left: results, claims, and rows that `renew` does not keep, whose samples are
        answered again. Of several rows of a sample the first counts, but one without an error before others."""
        pairs = sorted(self._answers().pairs(), key=lambda pair: "error" in pair[0])
        first = {row["index"]: (row, line) for row, line in reversed(pairs)}
        kept = self._renew([row for row, _ in reversed(first.values())], self._differs())
        stored = [first[row["index"]] for row in kept]
        with writing(self.folder):
            (self.folder / "results.json").unlink(missing_ok=True)
            lines = b"".join(
                line + b"\n" if old is row else encode_rows([row]) for row, (old, line) in zip(kept, stored)
            )
            if lines != self._predictions.path.read_bytes():  # blank lines and a byte order mark go, too
                write_bytes(self._predictions.path, lines)
            for old in self._work.glob("*.alive"):
                old.unlink()
            self._claims.path.unlink(missing_ok=True)
        self._start()
        self._look()

    def _differs(self) -> bool | None:
        """Whether other code than this process's scored the stored rows; None: unknown."""
        if self._code is None:
            return False
        codes = set(self._workers.values())
        return None if codes <= {None} else codes != {self._code}

    # -- taking and giving -------------------------------------------------------------------------------------------

    def take(self, choose: Callable[[Iterator[int | str]], Sequence[int | str]]) -> list[int | str]:
        """Take the samples that `choose` picks from the front of the free ones; [] if no sample is free.

        Once all samples are taken, those of dead processes become free again.
        """
        with self._locked():
            if not self._open:
                lost = [key for key, name in self._taken.items() if not self._lives(name)]
                self._open.update(OrderedDict.fromkeys(lost))
                for key in lost:
                    del self._taken[key]
            keys = list(choose(iter(self._open))) if self._open else []
            if keys:
                self._claims.append([{"worker": self._name, "take": keys}])
                self._look()
            return keys

    def give(self, rows: Sequence[Row]) -> None:
        """Append the rows of samples that this process took."""
        with self._locked():
            self._given.update(row["index"] for row in rows)
            self._predictions.append(rows)
            self._look()
        self._predictions.sync()

    def progress(self) -> int:
        """Number of samples answered by all processes, as of the last read."""
        return len(self._keys) - len(self._open) - len(self._taken)

    def results(self, sum_up: Callable[[list[Row]], Row]) -> Row | None:
        """The content of results.json, which the first process to see all samples answered writes; None until then."""
        with self._locked():
            if self._open or self._taken:
                return None
            file = self.folder / "results.json"
            if not file.exists():
                rows = {row["index"]: row for row in reversed(self._answers().new())}  # the first of an index
                write_json(file, sum_up(list(rows.values())))
            check_regular(file)
            return json.loads(file.read_text(encoding="utf-8"))

    # -- reading what others wrote -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._lock, self.folder):
            self._look()
            yield

    def _look(self) -> None:
        """Read the claims and answers that were added since the last read."""
        for claim in self._claims.new():
            self._workers.setdefault(claim["worker"], claim.get("code"))
            for key in claim.get("take", ()):
                if key in self._open or key in self._taken:
                    self._open.pop(key, None)
                    self._taken[key] = claim["worker"]
        for row in self._predictions.new():
            self._open.pop(row["index"], None)
            self._taken.pop(row["index"], None)

    def _life(self, name: str) -> FileLock:
        return FileLock(self._work / f"{name}.alive")

    def _lives(self, name: str) -> bool:
        if name == self._name:
            return self._alive.is_locked
        file = self._work / f"{name}.alive"
        if file.is_symlink() or not file.is_file():  # a process's own lock is always a regular file
            return False
        probe = self._life(name)
        try:
            with writing(file):
                probe.acquire(timeout=0)
        except Timeout:
            return True
        probe.release()
        return False


def _unfailed(rows: list[Row], differs: bool | None) -> list[Row]:
    return [row for row in rows if "error" not in row]


def _wrong_claim(row: Row) -> str | None:
    """What is wrong with a row of claims.jsonl; None if nothing is."""
    name, keys = row.get("worker"), row.get("take", [])
    if not isinstance(name, str) or not name.isprintable() or "/" in name or not 0 < len(name) < 200:
        return "names no process"
    if not isinstance(row.get("code", ""), str):
        return "has a mark of code that is no string"
    return None if isinstance(keys, list) and all(map(is_key, keys)) else "takes something other than a list of samples"
