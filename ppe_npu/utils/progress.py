"""Progress of long work: a bar in a terminal, and lines elsewhere (a log file, a batch job, CI)."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

_EVERY = 30.0  # seconds between lines


class Progress:
    """A context manager that shows the progress of long work.

    Args:
        total: the number of units. title: a name for the work. unit: the name of one unit.
        done: how many units are done already.
        delay: seconds before the bar appears; lines are printed every 30 seconds.
        hidden: whether to show nothing, as in all processes except the first.
        leave: whether the bar stays when the work is done.
        quiet: whether to print no lines without a terminal, for callers that print their own.
        stream: where to write; None: standard error.
    """

    def __init__(
        self,
        total: int,
        title: str,
        unit: str = "it",
        done: int = 0,
        delay: float = 0.0,
        hidden: bool = False,
        leave: bool = True,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.title, self.unit, self.n = total, title, unit, done
        self._stream = sys.stderr if stream is None else stream
        self.terminal = is_terminal(self._stream)
        self._lines = not (self.terminal or hidden or quiet)
        self._printed, self._began = None, time.monotonic()
        self._next = self._began + _EVERY
        self._bar = None
        if self.terminal and not hidden:
            self._bar = tqdm(
                total=total, initial=done, desc=title, unit=unit, delay=delay, leave=leave, file=self._stream
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def update(self, number: int = 1) -> None:
        """Count `number` more units as done."""
        self.n += number
        if self._bar is not None:
            self._bar.update(number)
        elif self._lines and number and time.monotonic() >= self._next:
            self._line()

    def note(self, **values: Any) -> None:
        """Show these values after the bar."""
        if self._bar is not None:
            self._bar.set_postfix(**values)

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Close the bar; or print a last line, if any line was printed before."""
        if self._bar is not None:
            self._bar.close()
        elif self._lines and self._printed not in (None, self.n):
            self._line()
        self._lines = False

    def _line(self) -> None:
        now = time.monotonic()
        self._printed, self._next, spent = self.n, now + _EVERY, now - self._began
        print(f"{self.title}: {self.n} of {self.total} {self.unit}s, {spent:.0f} s", file=self._stream, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal, which a user may watch and whose cursor can be moved."""
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())
