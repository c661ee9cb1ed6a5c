"""Limits on the time and memory that reading one piece of foreign data may take."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 20  # of this process's CPU time, so that a busy machine changes nothing
WAITING = 180  # seconds of wall time, after which the work counts as hanging
MEMORY = 2 * 2**20  # KiB in addition to what the process held before
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextlib.contextmanager
def bounded(what: Any) -> Iterator[None]:
    """Raise AssertionError if the body takes more than these limits. A request for far more memory fails by itself, so
    that a fault does not affect the machine.

    Args:
        what: names what was read in the message.
    """

    def hang(*_: Any) -> None:
        raise AssertionError(f"waits for ever: {what}")

    _RESET.write_text("5")  # resets the peak, see proc(5)
    held, began = _memory("VmRSS"), time.process_time()
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(WAITING)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1024 * (_memory("VmSize") + 4 * MEMORY), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        assert time.process_time() - began < SECONDS, what
        assert _memory("VmHWM") - held < MEMORY, what


def _memory(name: str) -> int:
    """An entry of /proc/self/status in KiB."""
    return int(re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[1])
