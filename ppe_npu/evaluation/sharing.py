"""Processes share the samples of a run through its folder: no sample is left out, none is answered twice.

A process takes samples under a lock of the folder and notes them in claims.jsonl; answers are appended to
predictions.jsonl under the same lock. While it works a process holds a lock of its own, which the kernel releases when
the process ends, however it ends: samples that a dead process had taken are then taken by another one. Nobody has to
know how many processes there are; one may join or die at any time, on this machine or on another one that sees the
folder. Files are only appended to and opened anew at every look, as NFS needs it; names that others must find are
read from claims.jsonl, not from the folder's listing, which NFS may give as it was a minute ago.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ppe_npu.errors import InputError, shown
from ppe_npu.evaluation.rows import BOM, Row, encode, has_sums, is_key, parse, with_sums
from ppe_npu.files import check_regular, locked, write_bytes, write_json, write_whole, writing
from ppe_npu.utils.launched import environment_number

Check = Callable[[Row], str | None]  # what is wrong with a row; None: nothing
_PATIENCE = 120.0  # seconds until a shared folder shows another machine's file: NFS keeps its listings for up to 60


def check_shared(output: Path, patience: float = _PATIENCE) -> None:
    """Make the output folder, and check, in a job that torchrun started on several machines, that all of them see it.

    Raises:
        InputError: the first machine's mark does not appear here within `patience` seconds.
        FileError: it cannot be made.
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
    """Give the answers that the first edition left in a folder sums. Call it before settings.json says that they have.

    Raises:
        InputError: the folder's file system has no locks.
        FileError: they cannot be written.
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


class Lines:
    """A file of JSON lines that processes append to, all under one lock.

    Args:
        path: of the file.
        check: says what is wrong with a line.
        remedy: what to do about one that is wrong.
    """

    def __init__(self, path: Path, check: Check, remedy: str) -> None:
        self.path, self._check, self._remedy = path, check, remedy
        self._read, self._count = 0, 0  # bytes and lines that were seen

    def new(self) -> list[Row]:
        """The lines that were added since the last call; see pairs()."""
        return [row for row, _ in self.pairs()]

    def pairs(self) -> list[tuple[Row, bytes]]:
        """(row, its bytes) of the lines that were added since the last call.

        A last line that a kill cut off is taken away; whole lines stay as they are, also if they are wrong.

        Raises:
            InputError: a line is wrong; file and line are named.
        """
        check_regular(self.path)
        with writing(self.path), open(self.path, "a+b") as file:
            # Creating asks the file server, where looking might ask a stale cache.
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
        """None of a blank line."""
        if not line.strip():
            return None
        row, reason = parse(line)
        reason = reason or self._check(row)
        if reason:
            raise InputError(f"{self.path} holds a line that {reason} (line {number}): {self._remedy}")
        return row, line

    def _finish(self, last: bytes, at: int) -> tuple[Row, bytes] | None:
        """A last line without its end: one that is whole is ended, one that was cut off is taken away (None)."""
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
        """Add lines. The last line must be whole: call new() first. Closing makes them visible on other machines.

        Raises:
            InputError: the disk is full, say: lines that were written whole stay, and no half one.
        """
        data = encode(rows)
        with writing(self.path), open(self.path, "ab", buffering=0) as file:
            start = os.fstat(file.fileno()).st_size
            try:
                write_whole(file, data)
            except OSError:
                written = os.fstat(file.fileno()).st_size - start
                with contextlib.suppress(OSError):  # else whoever comes next takes the half line away
                    os.truncate(self.path, start + data[:written].rfind(b"\n") + 1)
                raise

    def sync(self) -> None:
        """Wait until what was added is on the disk. Needs no lock."""
        with writing(self.path), open(self.path, "ab") as file:
            os.fsync(file.fileno())


class Share:
    """This process's part in a run. A context manager: inside it the process counts as alive.

    Args:
        folder: of the run.
        keys: every sample's index, in the order in which they are best taken.
        check: says what is wrong with a line of predictions.jsonl that another process wrote, beside its index.

    Raises:
        InputError: the folder's file system has no locks, or its files hold something else; file and line are named.
    """

    def __init__(self, folder: str | Path, keys: Sequence[int | str], check: Check | None = None) -> None:
        self.folder, self._keys, self._check = Path(folder), keys, check
        self._known: frozenset[int | str] = frozenset(keys)
        self._given: set[int | str] = set()  # by this process
        self._work = self.folder / ".work"
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock, self._alive = FileLock(self._work / "lock"), self._life(self._name)
        self._start()

    def _start(self) -> None:
        self._predictions = self._answers()
        remedy = f"delete {self._work} while no process works on this run; it holds no answers"
        self._claims = Lines(self._work / "claims.jsonl", _wrong_claim, remedy)
        self._open: OrderedDict[int | str, None] = OrderedDict.fromkeys(self._keys)
        self._taken: dict[int | str, str] = {}  # and the process that has it
        self._workers: dict[str, None] = {}

    def _answers(self) -> Lines:
        remedy = "delete that line, and its sample is asked again; or choose another output"
        return Lines(self.folder / "predictions.jsonl", self._wrong_answer, remedy)

    def _wrong_answer(self, row: Row) -> str | None:
        index = row.get("index")
        if not is_key(index):
            return f"has the index {shown(index)}, which is neither a text nor a whole number"
        if index not in self._known:
            return f"answers {shown(index)}, which the benchmark does not ask"
        return None if self._check is None or index in self._given else self._check(row)

    # -- joining and leaving -----------------------------------------------------------------------------------------

    def __enter__(self) -> Share:
        with writing(self._work):
            self._work.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if not any(self._lives(name) for name in self._workers):
                self._tidy()
            with writing(self._work):
                self._alive.acquire(timeout=0)
            self._claims.append([{"worker": self._name}])
        return self

    def __exit__(self, *exc: Any) -> None:
        self._alive.release()

    def _tidy(self) -> None:
        """What earlier processes left: failed samples are to be asked again, and everything is summed up anew."""
        pairs = self._answers().pairs()
        whole = {row["index"]: line for row, line in reversed(pairs) if "error" not in row}  # of two, the first
        with writing(self.folder):
            (self.folder / "results.json").unlink(missing_ok=True)
            lines = b"".join(line + b"\n" for line in reversed(whole.values()))
            if len(lines) != self._predictions.path.stat().st_size:  # or blank lines, or a mark before the first
                write_bytes(self._predictions.path, lines)
            for old in self._work.glob("*.alive"):
                old.unlink()
            self._claims.path.unlink(missing_ok=True)
        self._start()
        self._look()

    # -- taking and giving -------------------------------------------------------------------------------------------

    def take(self, choose: Callable[[Iterator[int | str]], Sequence[int | str]]) -> list[int | str]:
        """Samples for this process: those that `choose` picks from the front of those that nobody has; [] if none is.

        Where all are taken, those of dead processes are free again.
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
        """Append answers of samples that were taken."""
        with self._locked():
            self._given.update(row["index"] for row in rows)
            self._predictions.append(rows)
            self._look()
        self._predictions.sync()

    def progress(self) -> int:
        """How many samples are answered, as far as this process has seen."""
        return len(self._keys) - len(self._open) - len(self._taken)

    def results(self, sum_up: Callable[[list[Row]], Row]) -> Row | None:
        """results.json, written by the process that first sees all samples answered; None while some are not."""
        with self._locked():
            if self._open or self._taken:
                return None
            file = self.folder / "results.json"
            if not file.exists():
                rows = {row["index"]: row for row in reversed(self._answers().new())}  # of two, the first
                write_json(file, sum_up(list(rows.values())))
            check_regular(file)
            return json.loads(file.read_text(encoding="utf-8"))

    # -- what others did ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._lock, self.folder):
            self._look()
            yield

    def _look(self) -> None:
        """Read what was added since the last look."""
        for claim in self._claims.new():
            self._workers[claim["worker"]] = None
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
        if file.is_symlink() or not file.is_file():  # no process makes anything else
            return False
        probe = self._life(name)
        try:
            with writing(file):
                probe.acquire(timeout=0)
        except Timeout:
            return True
        probe.release()
        return False


def _wrong_claim(row: Row) -> str | None:
    """What is wrong with a line of claims.jsonl."""
    name, keys = row.get("worker"), row.get("take", [])
    if not isinstance(name, str) or not name.isprintable() or "/" in name or not 0 < len(name) < 200:
        return "names no process"
    return None if isinstance(keys, list) and all(map(is_key, keys)) else "takes what are no samples"
