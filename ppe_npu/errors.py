"""What this package raises when it was asked for something that cannot be, or cannot go on. Messages are one line.

Everything that is the user's to mend is a UserError: the command line prints it as one line. Any other exception is a
fault of this package, and keeps its traceback.
"""


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
    """The first line of what an error says, or its name if it says nothing: to be quoted in a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
