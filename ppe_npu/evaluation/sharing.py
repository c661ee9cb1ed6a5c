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

from filelock import FileLock, SoftFileLock, Timeout

from ppe_npu.errors import InputError
from ppe_npu.files import write_json, write_text

Row = dict[str, Any]
_PATIENCE = 120.0  # seconds until a shared folder shows another machine's file: NFS keeps its listings for up to 60


def check_shared(output: Path, patience: float = _PATIENCE) -> None:
    """Of a job that torchrun started on several machines: whether all of them see the output folder.

    Raises:
        InputError: the first machine's mark does not appear here within `patience` seconds.
    """
    node = int(os.environ.get("GROUP_RANK", "0"))
    if os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")):
        return
    job = "-".join(os.environ.get(key, "") for key in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))
    mark = output / f".seen-{''.join(c if c.isalnum() else '-' for c in job)}"
    if node == 0:
        output.mkdir(parents=True, exist_ok=True)
        mark.touch()
        return
    deadline = time.monotonic() + patience
    while not mark.exists():
        if time.monotonic() > deadline:
            raise InputError(
                f"output {output} is not the folder that the first machine writes to: name one that all machines see"
            )
        time.sleep(min(1.0, patience / 10))


class Lines:
    """A file of JSON lines that processes append to, all under one lock."""

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, 0

    def new(self) -> list[Row]:
        """The lines that were added since the last call. A last line that a kill cut off is taken away."""
        with open(self.path, "a+b") as file:  # creating asks the file server, where looking might ask a stale cache
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, self._read + len(whole))
        self._read += len(whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise InputError(f"{self.path} holds a line that is not JSON ({error}): delete that line") from error

    def append(self, rows: Iterable[Row]) -> None:
        """Add lines. The last line must be whole: call new() first. Closing makes them visible on other machines."""
        with open(self.path, "ab") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())

    def sync(self) -> None:
        """Wait until what was added is on the disk. Needs no lock."""
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())


class Share:
    """This process's part in a run. A context manager: inside it the process counts as alive.

    Args:
        folder: of the run.
        keys: every sample's index, in the order in which they are best taken.

    Raises:
        InputError: the folder's file system has no locks.
    """

    def __init__(self, folder: str | Path, keys: Sequence[int | str]) -> None:
        self.folder, self._keys = Path(folder), keys
        self._work = self.folder / ".work"
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock, self._alive = FileLock(self._work / "lock"), self._life(self._name)
        self._start()

    def _start(self) -> None:
        self._predictions = Lines(self.folder / "predictions.jsonl")
        self._claims = Lines(self._work / "claims.jsonl")
        self._open: OrderedDict[int | str, None] = OrderedDict.fromkeys(self._keys)
        self._taken: dict[int | str, str] = {}  # by whom
        self._workers: dict[str, None] = {}

    # -- joining and leaving -----------------------------------------------------------------------------------------

    def __enter__(self) -> Share:
        self._work.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if not any(self._lives(name) for name in self._workers):
                self._tidy()
            self._alive.acquire(timeout=0)
            self._claims.append([{"worker": self._name}])
        return self

    def __exit__(self, *exc: Any) -> None:
        self._alive.release()

    def _tidy(self) -> None:
        """What earlier processes left: failed samples are to be asked again, and everything is summed up anew."""
        (self.folder / "results.json").unlink(missing_ok=True)
        rows = Lines(self._predictions.path).new()
        whole = {row["index"]: row for row in reversed(rows) if "error" not in row}  # of two, the first
        if len(whole) < len(rows):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in reversed(whole.values()))
            write_text(self._predictions.path, text)
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
                rows = {row["index"]: row for row in reversed(Lines(self._predictions.path).new())}  # of two, the first
                write_json(file, sum_up(list(rows.values())))
            return json.loads(file.read_text(encoding="utf-8"))

    # -- what others did ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._lock.acquire(poll_interval=0.005)
        except NotImplementedError as error:  # filelock's word for a file system without flock
            raise InputError(self._no_locks()) from error
        try:
            if isinstance(self._lock, SoftFileLock):  # a newer filelock's: a file that a killed process would leave
                raise InputError(self._no_locks())
            self._look()
            yield
        finally:
            self._lock.release()

    def _no_locks(self) -> str:
        return f"output {self.folder} is on a file system without file locks (flock): name a folder on another one"

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
        if not (self._work / f"{name}.alive").exists():
            return False
        probe = self._life(name)
        try:
            probe.acquire(timeout=0)
        except Timeout:
            return True
        probe.release()
        return False
