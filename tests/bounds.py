"""How much one piece of other people's data may take: seconds of work, and memory."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 20  # of this process's work: a busy machine changes nothing
WAITING = 180  # of the clock: whatever takes so long waits for ever
MEMORY = 2 * 2**20  # KiB beyond what was held before
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextlib.contextmanager
def bounded(what: Any) -> Iterator[None]:
    """Raise AssertionError where what is done in it takes more. Of what would take far more memory the request itself
    fails, so that a fault costs the machine nothing.

    Args:
        what: says in the message what was read.
    """

    def hang(*_: Any) -> None:
        raise AssertionError(f"waits for ever: {what}")

    _RESET.write_text("5")  # the peak begins anew: proc(5)
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
    """KiB."""
    return int(re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[1])
