"""What a benchmark has written before: a run that was cut off goes on in the same file."""

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
    """Why something was not measured: what else there is to measure is measured all the same."""
    if isinstance(error, torch.OutOfMemoryError):
        return NO_ROOM
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def faults(why: Mapping[str, str]) -> list[str]:
    """Of what was not measured, and why, that which has failed: a device may be too small for it without a fault."""
    return [f"{name} ({text})" for name, text in why.items() if text != NO_ROOM]


def output_file(text: str) -> str:
    """--output, as argparse takes it: where a file can be written, which is looked at before anything is measured."""
    path = os.path.expanduser(text)
    try:
        if not text.strip() or address_fault(text):
            raise InputError(f"{shown(text)} is no file on this machine: name one")
        check_writable(path, file=True)
    except (UserError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def earlier(output: str | None, facts: dict, rows: str) -> dict:
    """What is in the output already, if it was measured under the same conditions; else these facts and no rows.

    Args:
        rows: the key under which the rows stand.

    Raises:
        InputError: it was measured under others.
    """
    if output is None or not Path(output).is_file():
        return {"facts": facts, rows: {}}
    found = json_or_none(output)
    if not isinstance(found, dict) or found.get("facts") != facts or not isinstance(found.get(rows), dict):
        raise InputError(f"output {output} was measured on another machine or by other settings: name another file")
    return found
