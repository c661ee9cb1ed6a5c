"""Curves for TensorBoard: what transformers' callback says of a run, written by the run itself.

torch's SummaryWriter writes in a thread of its own, where a full disk is a traceback beside the run's own line.
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from ppe_npu.files import write_whole, writing
from ppe_npu.training.loop import RESUME


class CurveFile:
    """A file of events in a folder, with what transformers' TensorBoardCallback asks of a SummaryWriter.

    Raises:
        FileError: of its methods, too: the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file, self._pending, self._whole = folder / name, io.BytesIO(), 0
        self._records = RecordWriter(self._pending)
        self._add(file_version="brain.Event:2")
        self.flush()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        from torch.utils.tensorboard import summary

        self._add(summary=summary.scalar(name, value), step=step)

    def add_text(self, name: str, text: str, step: int = 0) -> None:
        """A text beside the curves."""
        from torch.utils.tensorboard import summary

        self._add(summary=summary.text(name, text), step=step)

    def flush(self) -> None:
        """Write what was added: whole events, in one piece, after the last whole one. TensorBoard reads up to an event
        that a kill cut off; what follows one that a full disk cut off it would not read."""
        with writing(self._file, then=RESUME):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "ab", buffering=0) as file:
                if file.seek(0, os.SEEK_END) > self._whole:  # shorter is a file that somebody took away or emptied
                    file.truncate(self._whole)
                write_whole(file, self._pending.getvalue())
                self._whole = file.seek(0, os.SEEK_END)
        self._pending.seek(0)
        self._pending.truncate()

    close = flush

    def _add(self, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **what).SerializeToString())
