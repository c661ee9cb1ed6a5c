"""What this package raises when it was asked for something that cannot be, or cannot go on. Messages are one line."""


class InputError(ValueError):
    """Something that was given cannot be used: the message names it, says why, and what to do."""


class TrainingError(RuntimeError):
    """Training cannot go on."""
