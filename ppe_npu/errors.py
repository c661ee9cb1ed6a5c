"""What this package raises when it was asked for something that cannot be, or cannot go on. Messages are one line.

Everything that is the user's to mend is a UserError: the command line prints it as one line. Any other exception is a
fault of this package, and keeps its traceback.
"""

from __future__ import annotations

import reprlib
from typing import Any

_QUOTED = 500  # signs of another program's message


class UserError(Exception):
    """The user can mend this: the message names the subject, its value and the remedy."""

    exit_code = 2  # of the command line


class InputError(UserError, ValueError):
    """Something that was given cannot be used: the message names it, says why, and what to do."""


class FileError(UserError, OSError):
    """A file or folder cannot be written: the message names it, says why (a full disk, rights, ...), and what to do."""


class TrainingError(UserError, RuntimeError):
    """Training cannot go on."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of what an error says, with the next one behind a colon, or its name if it says nothing: to be
    quoted in a message of ours; cut short, as it may repeat a whole file."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    text = f"{first} {others[0].strip()}" if first.endswith(":") and others else first
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 3]}..."


def counted(number: float, what: str) -> str:
    """How many there are of something, in words: "1 file", "1,024 files"."""
    return f"{number:{',' if isinstance(number, int) else ',.10g'}} {what}{'s' * (number != 1)}"


def shown(value: Any) -> str:
    """A value in a message: its repr in one line, cut short; of anything, however deep, long or broken it is."""
    return " ".join(_SHORT.repr(value).split())


class _Short(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, 80, 80, 40
        self.maxlist = self.maxtuple = self.maxarray = 8
        self.maxdict = self.maxset = self.maxfrozenset = 5

    def repr_int(self, value: int, level: int) -> str:
        if abs(value) >= 10**self.maxlong:  # Python itself refuses to write very long ones
            return f"{'-' * (value < 0)}2**{value.bit_length() - 1}..."
        return repr(value)


_SHORT = _Short()
