"""The facts behind a benchmark's numbers, in a few sentences of plain text for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppe_npu.evaluation import decoding, tuned


def sentence(name: str, found: Mapping[str, Any], results: Sequence[Mapping[str, Any]], protocol: str) -> str:
    """One benchmark's samples, score, dtypes, devices, tuning of the weights, decoding, failures and protocol, as text.

    Args:
        found: the benchmark's numbers from comparison.compare(). results: those of runs; may include other benchmarks'.
        protocol: label of the protocol.
    """
    runs = [result for result in results if result["settings"]["benchmark"] == name]
    devices = ", ".join(dict.fromkeys(run["versions"]["device"] for run in runs))
    batch = max(run["costs"].get("batch") or 0 for run in runs)
    in_batches = f", batches of {batch:.0f}" if batch else ""
    dtypes = ", ".join(dict.fromkeys(run["settings"].get("dtype", "?") for run in runs))
    many = _counted(found["samples"], "sample")
    if found["units"] is not None:
        many += f", judged in {_counted(found['units'], 'group')}"
    text = f"{many}, score: {found['score']}; {dtypes} on {devices}{in_batches}.{tuned.sentence(runs)}{_decoding(runs)}"
    answers = sum(run["samples"] for run in runs)
    errors = sum(row["errors"] for row in found["rows"])
    if len(found["types"]) > 1:
        counts = {kind: max(r["types"][kind]["count"] for r in runs if kind in r["types"]) for kind in found["types"]}
        text += " Samples per type: " + ", ".join(f"{kind} {count}" for kind, count in counts.items()) + "."
    text += f" {errors:,} of {answers:,} answers failed and count as wrong." if errors else ""
    mixed = " The benchmark's code changed between its runs, so their scores do not compare: run all again."
    text += mixed if name in of_changed_code(runs) else ""
    return f"{text} Protocol: {protocol}."


def of_changed_code(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The benchmarks whose runs were scored by different code; runs that do not record theirs are left out."""
    codes: dict[str, set[str]] = {}
    for run in results:
        codes.setdefault(run["settings"]["benchmark"], set()).update(filter(None, [run.get("scored_by")]))
    return [name for name, own in codes.items() if len(own) > 1]


def _decoding(runs: Sequence[Mapping[str, Any]]) -> str:
    """The rules of decoding unless all are greedy, and the checkpoint's own settings that were not used."""
    rules = [run["settings"].get("generation") or {} for run in runs]
    used = dict.fromkeys(decoding.beside_greedy(found) or "greedy" for found in rules)
    left = dict.fromkeys(name for run in runs for name in run.get("ignored") or ())
    text = "" if list(used) == ["greedy"] else f" Generation: {'; '.join(used)}."
    names = ", ".join(left)
    return text + (f" Ignored generation settings of the checkpoint: {names}." if left else "")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
