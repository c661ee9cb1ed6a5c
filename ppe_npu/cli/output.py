"""Prints a command's result for programs, and lines for people. Imports neither torch nor transformers, so that
`doctor` works if they are broken, and small commands start fast."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.utils.launched import environment_number
from ppe_npu.utils.paths import expanded


def print_json(args: argparse.Namespace, value: Any) -> None:
    """Print a command's result on standard output, in the first process only; with --json all else goes to stderr."""
    if _is_first_process():
        print(json.dumps(_finite(value), indent=1, ensure_ascii=False, default=str), file=args.json_stream, flush=True)


def say(text: str | None) -> None:
    """Print a line on standard error, in the first process only; nothing if `text` is None."""
    if text is not None and _is_first_process():
        print(f"ppe-npu: {text}", file=sys.stderr, flush=True)


def check_apart(flag: str, output: str | Path, read: Iterable[str | Path]) -> None:
    """Raise InputError if the file to be written is one of the files that are read."""
    output, files = expanded(output), map(expanded, read)
    if output.exists() and any(output.samefile(file) for file in files if file.exists()):
        raise InputError(f"{flag} {output} is also an input: name another file")


def _is_first_process() -> bool:
    return environment_number("RANK", 0) == 0  # as device.process_rank(), whose module imports torch


def _finite(value: Any) -> Any:
    """The value with None for each float that JSON cannot represent (infinity, NaN)."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
