"""The table of an interleaved pass: time, speed relative to dense, percentage of dense's score, and counted work."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line
from ppe_npu.evaluation import stored
from ppe_npu.evaluation.cost_pass import FILE, PROCESSOR
from ppe_npu.evaluation.identity import marks
from ppe_npu.evaluation.protocols import CHECKPOINT
from ppe_npu.evaluation.results import SMALLER, run_title
from ppe_npu.evaluation.run_protocol import label
from ppe_npu.files import check_regular

KEEPS = 0.99  # of dense's score; a method below it is marked
WORDS = (
    "Interleaved costs: all methods answered the same prompts right after each other, one prompt per batch, in several "
    "rounds after an uncounted one. The table has medians, quartiles, and the median of the ratios to dense (or to the "
    "method that the column heads name) with its bootstrap interval over prompts and rounds; on a CPU the ratios "
    "compare processor time. If the interval contains 1, or the ratios scatter more than they differ from 1, there is "
    "no clear difference. Scores below 99 % of dense's are marked. Work is counted, not measured: products of a "
    "prefill as torch counts them, weights read once, keys and values of the prompt's tokens."
)


def read(results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The pass over the methods of one benchmark, read from the folder that contains the runs' folders; None if there
    is no pass of the same protocol or over these runs.

    Raises:
        InputError: the file is damaged.
    """
    folders = dict.fromkeys(Path(run["folder"]).parent for run in results if "folder" in run)
    for folder in folders:
        file = folder / FILE
        if not file.is_file():
            continue
        check_regular(file)
        try:
            found = json.loads(file.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not JSON ({first_line(error)}): delete it and measure again") from error
        wrong = stored.result_fault(found, costs=True)
        if wrong:
            raise InputError(f"{file} is damaged ({wrong}): delete it and measure again")
        found = _of_these(found, results)
        if found is not None:
            return found
    return None


def _of_these(found: dict[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The pass without the methods whose runs have other settings by now; None if it covered none of these runs, or if
    the reference's settings have changed.

    Args:
        found: a pass; one of an earlier edition does not name the runs it covered, and is accepted by its protocol.
    """
    sums = found.get("of")
    if not isinstance(sums, Mapping):
        labels = {label(run["settings"]) for run in results}  # that edition's labels lacked changes to "checkpoint"
        labels |= {CHECKPOINT} if any(name.startswith(CHECKPOINT) for name in labels) else set()
        return found if found["protocol"] in labels else None
    own: dict[str | None, set[str]] = {}
    for run in results:
        own.setdefault(_title(run["settings"]), set()).update(marks(run["settings"]))
    since = {name for name, known in own.items() if name in sums and sums[name] not in known}
    same = any(sums.get(name) in known for name, known in own.items())
    if not same or found.get("reference") in since:
        return None
    return {**found, "rows": {name: row for name, row in found["rows"].items() if name not in since}}


def _title(settings: Mapping[str, Any]) -> str | None:
    """A run's title; None if its compression is of another edition or invalid, so that no pass covered it."""
    try:
        return run_title(settings)
    except (LookupError, TypeError, ValueError, AttributeError):  # InputError is a ValueError
        return None


def head(measured: Mapping[str, Any]) -> list[str]:
    """Heads of the columns after the method's. They name the reference, and whether ratios are of times or of processor
    times.

    Args:
        measured: a pass.
    """
    base = measured.get("reference", "dense")
    of = ", processor time," if measured.get("ratios_of") == PROCESSOR else ","
    return [
        "TTFT ms (quartiles)",
        f"TTFT{of} times as fast as {base} (95 %)",
        "whole answer ms",
        f"answer{of} times as fast (95 %)",
        "of dense's score",
        "tower GFLOP",
        "decoder GFLOP",
        "weights MiB",
        "KV KiB",
    ]


def lines(found: Mapping[str, Any], measured: Mapping[str, Any]) -> list[list[str]]:
    """A line for each method of the benchmark that was measured.

    Args:
        found: the benchmark's numbers from comparison.compare(). measured: its pass.
    """
    dense = next((row["score"] for row in found["rows"] if row["dense"]), None)
    base, out = measured.get("reference", "dense"), []
    for row in found["rows"]:
        cost = measured["rows"].get(row["name"])
        if cost is None:
            continue
        share = row["score"] / dense if dense else None
        out.append(
            [
                row["name"],
                f"{1e3 * cost['ttft']['median']:.1f} ({_span(cost['ttft'])})",
                faster(cost["ttft"], row["name"] == base),
                f"{1e3 * cost['total']['median']:.1f} ({_span(cost['total'])})",
                faster(cost["total"], row["name"] == base),
                kept(share),
                *_work(cost.get("counted")),
            ]
        )
    return out


def slower_for_less(measured: Mapping[str, Any]) -> list[str]:
    """The methods that took longer to the first token than the reference although they need less counted work."""
    rows = {name: row for name, row in measured["rows"].items() if not name.startswith(SMALLER)}  # selects no tokens
    work = {name: _flops(row.get("counted")) for name, row in rows.items()}
    most = work.get(measured.get("reference", "dense"), math.inf)
    less = [name for name, flops in work.items() if flops < most < math.inf]
    times = {name: measured["rows"][name]["ttft"] for name in less}
    return [name for name, time in times.items() if time.get("told") and time["ratio"] > 1]


def _flops(counted: Mapping[str, Any] | None) -> float:
    """FLOPs of tower and decoder; infinite if they were not counted."""
    return counted["tower_flops"] + counted["decoder_flops"] if counted and "why" not in counted else math.inf


def _span(cost: Mapping[str, Any]) -> str:
    low, high = cost.get("quartiles") or (cost["median"],) * 2
    return f"{1e3 * low:.1f} to {1e3 * high:.1f}"


def faster(cost: Mapping[str, Any], reference: bool = False) -> str:
    """How many times as fast as the reference, with the interval; it says so if there is no clear difference."""
    if reference:
        return "1"
    text = f"{1 / cost['ratio']:.2f} ({1 / cost['high']:.2f} to {1 / cost['low']:.2f})"
    return text if cost.get("told") else f"{text}, no clear difference"


def kept(share: float | None) -> str:
    """The percentage of dense's score, marked if it is below KEEPS; a dash for None."""
    if share is None:
        return "-"
    return f"{100 * share:.1f} %" + (" (below 99 %)" if share < KEEPS else "")


def _work(counted: Mapping[str, Any] | None) -> list[str]:
    if not counted or "why" in counted:
        return ["-"] * 4
    weights = (counted["tower_bytes"] + counted["decoder_bytes"]) / 2**20
    giga = [counted["tower_flops"] / 1e9, counted["decoder_flops"] / 1e9]
    return [*(f"{value:,.3g}" for value in giga), f"{weights:,.4g}", f"{counted['kv_bytes'] / 2**10:,.4g}"]
