"""The exceptions of this package. Their messages are one line.

An error that the user can fix is a UserError: the command line prints it as one line. Any other exception is a fault of
this package, and keeps its traceback.
"""

from __future__ import annotations

import reprlib
from typing import Any

_QUOTED = 500  # characters of another program's message


class UserError(Exception):
    """An error that the user can fix: the message names the subject, its value and the remedy."""

    exit_code = 2  # of the command line


class InputError(UserError, ValueError):
    """An input that cannot be used: the message names it, and says why and what to do."""


class FileError(UserError, OSError):
    """A file or folder that cannot be written: the message names it, and says why (a full disk, ...) and what to do."""


class TrainingError(UserError, RuntimeError):
    """Training cannot go on."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for quoting in another message: with the second line if the first ends in a
    colon, the error's class name if it is empty, and cut short, because it may contain a whole file."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    text = f"{first} {others[0].strip()}" if first.endswith(":") and others else first
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 3]}..."


def counted(number: float, what: str) -> str:
    """A number with its noun, in the plural if needed: "1 file", "1,024 files"."""
    return f"{number:{',' if isinstance(number, int) else ',.10g'}} {what}{'s' * (number != 1)}"


def shown(value: Any) -> str:
    """A value for a message: its repr in one line, cut short. Works for any value, however deep, long or broken."""
    return " ".join(_SHORT.repr(value).split())


class _Short(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, 80, 80, 40
        self.maxlist = self.maxtuple = self.maxarray = 8
        self.maxdict = self.maxset = self.maxfrozenset = 5

    def repr_int(self, value: int, level: int) -> str:
        if abs(value) >= 10**self.maxlong:  # Python itself refuses to print very long ones
            return f"{'-' * (value < 0)}2**{value.bit_length() - 1}..."
        return repr(value)


_SHORT = _Short()
