"""The whole numbers that a launcher such as torchrun puts into the environment of a job's processes."""

from __future__ import annotations

import os

from ppe_npu.errors import InputError, shown

_LONGEST = 9  # digits
_REMEDY = "unset it, or start with torchrun"


def environment_number(name: str, default: int) -> int:
    """A variable's value, or the default if it is not set.

    Raises:
        InputError: the value is not a whole number, or it is below the default.
    """
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST and int(text) >= default):
        given = f"environment variable {name}={shown(text)}"
        raise InputError(f"{given} must be a whole number of at least {default}: {_REMEDY}")
    return int(text)


def check_launched() -> None:
    """Raise InputError unless the environment's ranks are below WORLD_SIZE. LOCAL_RANK of a single process is ignored,
    because a scheduler may have set it."""
    count = environment_number("WORLD_SIZE", 1)
    for name in ("RANK", "LOCAL_RANK") if count > 1 and has_local_rank() else ("RANK",):
        if (rank := environment_number(name, 0)) >= count:
            raise InputError(f"environment variable {name}={rank} must be below WORLD_SIZE={count}: {_REMEDY}")


def has_local_rank() -> bool:
    """Whether a launcher or a user's script has set LOCAL_RANK, this process' number on its machine."""
    return os.environ.get("LOCAL_RANK", "-1") != "-1"  # transformers sets -1 if there is no job
