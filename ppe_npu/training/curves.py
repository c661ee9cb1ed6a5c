"""Curves for TensorBoard: the values of transformers' callback, written in the run's own thread.

torch's SummaryWriter writes in another thread, where a full disk prints a traceback besides the run's own message.
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
    """An event file in a folder, with those methods of a SummaryWriter that transformers' TensorBoardCallback calls.

    Raises:
        FileError: the file cannot be written; the methods raise it, too.
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
        """Write the events that were added, in one piece, after the last complete one. TensorBoard reads nothing behind
        an event that was cut off, so one that a full disk cut off is removed first."""
        with writing(self._file, then=RESUME):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "ab", buffering=0) as file:
                if file.seek(0, os.SEEK_END) > self._whole:  # a shorter file was removed or emptied meanwhile
                    file.truncate(self._whole)
                write_whole(file, self._pending.getvalue())
                self._whole = file.seek(0, os.SEEK_END)
        self._pending.seek(0)
        self._pending.truncate()

    close = flush

    def _add(self, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **what).SerializeToString())
