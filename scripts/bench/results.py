"""Output files of the benchmarks, in which an interrupted run can be resumed, and reasons for missing results."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ppe_npu.errors import InputError, UserError, shown
from ppe_npu.files import check_writable
from ppe_npu.utils.paths import address_fault
from ppe_npu.utils.reading import json_or_none

NO_ROOM = "out of memory"


def reason(error: Exception) -> str:
    """Why a case was not measured, in one line. Benchmarks record it and go on with the other cases."""
    if isinstance(error, torch.OutOfMemoryError):
        return NO_ROOM
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def faults(why: Mapping[str, str]) -> list[str]:
    """The cases that failed, of those that were not measured. A device with too little memory is not a failure."""
    return [f"{name} ({text})" for name, text in why.items() if text != NO_ROOM]


def output_file(text: str) -> str:
    """argparse type of --output: a path that can be written, which is checked before anything is measured."""
    path = os.path.expanduser(text)
    try:
        if not text.strip() or address_fault(text):
            raise InputError(f"{shown(text)} is no file on this machine: name one")
        check_writable(path, file=True)
    except (UserError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def earlier(output: str | None, facts: dict, rows: str) -> dict:
    """The contents of an existing output file, or, if there is none, these facts and no rows.

    Args:
        rows: the key of the rows.

    Raises:
        InputError: the file was measured under other conditions.
    """
    if output is None or not Path(output).is_file():
        return {"facts": facts, rows: {}}
    found = json_or_none(output)
    if not isinstance(found, dict) or found.get("facts") != facts or not isinstance(found.get(rows), dict):
        raise InputError(f"output {output} was measured on another machine or by other settings: name another file")
    return found
