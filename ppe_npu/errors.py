"""What this package raises when it was asked for something that cannot be, or cannot go on. Messages are one line."""


class InputError(ValueError):
    """Something that was given cannot be used: the message names it, says why, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name if it says nothing: to be quoted in a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class TrainingError(RuntimeError):
    """Training cannot go on."""
