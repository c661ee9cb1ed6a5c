"""What a command says: its result for programs, and lines for people. Imports neither torch nor transformers, so that
`doctor` can speak where they are broken, and small commands start at once."""

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
    """A command's result on standard output, of the first process; with --json all else goes to standard error."""
    if _is_first_process():
        print(json.dumps(_finite(value), indent=1, ensure_ascii=False, default=str), file=args.json_stream, flush=True)


def say(text: str | None) -> None:
    """A line on standard error, of the first process; None says nothing."""
    if text is not None and _is_first_process():
        print(f"ppe-npu: {text}", file=sys.stderr, flush=True)


def check_apart(flag: str, output: str | Path, read: Iterable[str | Path]) -> None:
    """Raise InputError where a file that is to be written is one of those that are read."""
    output, files = expanded(output), map(expanded, read)
    if output.exists() and any(output.samefile(file) for file in files if file.exists()):
        raise InputError(f"{flag} {output} is what is read: name another file")


def _is_first_process() -> bool:
    return environment_number("RANK", 0) == 0  # device.process_rank(), which is behind an import of torch


def _finite(value: Any) -> Any:
    """The value with null for each number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
