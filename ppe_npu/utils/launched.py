"""What a launcher, torchrun say, tells a process of its job: whole numbers in the environment."""

from __future__ import annotations

import os

from ppe_npu.errors import InputError, shown

_LONGEST = 9  # digits
_REMEDY = "unset it, or start by torchrun"


def environment_number(name: str, default: int) -> int:
    """A variable's value, or the default where it is not set.

    Raises:
        InputError: it is no whole number, or below the default.
    """
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST and int(text) >= default):
        raise InputError(f"environment variable {name}={shown(text)} is no whole number from {default} on: {_REMEDY}")
    return int(text)


def check_launched() -> None:
    """Raise InputError unless this process is one of the job's by what is said of it. A process alone has a rank on its
    machine where a scheduler gave each of its jobs one; it is not looked at."""
    count = environment_number("WORLD_SIZE", 1)
    for name in ("RANK", "LOCAL_RANK") if count > 1 and has_local_rank() else ("RANK",):
        if (rank := environment_number(name, 0)) >= count:
            raise InputError(f"environment variable {name}={rank} must be below WORLD_SIZE={count}: {_REMEDY}")


def has_local_rank() -> bool:
    """Whether a launcher, or somebody's script, says which process of its machine this is."""
    return os.environ.get("LOCAL_RANK", "-1") != "-1"  # -1: transformers' own word for no job
