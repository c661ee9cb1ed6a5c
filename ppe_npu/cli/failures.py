"""Prints which samples and metrics of an evaluation failed, and decides its exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.cli.output import say
from ppe_npu.utils.escape import printable


def all_failed(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no sample of any run was answered and scored, so that a table would only have zeros."""
    return all(result["errors"] == result["samples"] for result in results)


def tell(results: Sequence[Mapping[str, Any]]) -> int:
    """Print how many samples failed, why the first one did, and which file lists all of them; and why metrics() failed.

    Returns:
        The exit code: 1 if every sample failed, or a benchmark's metrics() did.
    """
    failed, asked = sum(result["errors"] for result in results), sum(result["samples"] for result in results)
    if failed:
        first = next(result for result in results if result["errors"])
        file = Path(first["folder"]) / "predictions.jsonl"
        untold = ", so there is no table" if all_failed(results) else _whole_runs(results)
        say(
            f"{failed} of {asked} samples failed{untold}; the first one with: {printable(first_error(file))}; see "
            f"{file}, and run the command again to retry them"
        )
    broken = [result for result in results if "metrics_error" in result]
    for result in broken:
        say(
            f"{_run(result)}: {printable(result['metrics_error'])}; fix it and run again: the answers are kept in "
            f"{result['folder']}"
        )
    return 1 if broken or all_failed(results) else 0


def _whole_runs(results: Sequence[Mapping[str, Any]]) -> str:
    """Names the runs none of whose samples was answered, as the end of a clause."""
    runs = [_run(result) for result in results if result["errors"] == result["samples"]]
    return f", among them all of {'; '.join(runs)}" if runs else ""


def _run(result: Mapping[str, Any]) -> str:
    return printable(f"{result['settings']['benchmark']}, {result['name']}")


def first_error(file: Path) -> str:
    """The index and the error of the first failed sample in a run's predictions."""
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip())
    row = next(row for row in rows if "error" in row)
    return f"sample {row['index']}: {row['error']}"
