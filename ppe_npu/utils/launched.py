"""What a launcher, torchrun say, tells a process of its job: whole numbers in the environment."""

from __future__ import annotations

import os

from ppe_npu.errors import InputError, shown

_LONGEST = 9  # digits


def environment_number(name: str, default: int) -> int:
    """A variable's value, or the default where it is not set.

    Raises:
        InputError: it is no whole number.
    """
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST):
        raise InputError(
            f"environment variable {name}={shown(text)} is no whole number: unset it, or start by torchrun"
        )
    return int(text)
