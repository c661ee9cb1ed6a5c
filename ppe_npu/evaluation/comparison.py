"""Results of many runs -> the numbers of a report: a row per method for each benchmark, and an overview of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppe_npu.errors import InputError
from ppe_npu.evaluation import cost_table
from ppe_npu.evaluation.identity import PROCESSOR_MARKS, same_data, unlike
from ppe_npu.evaluation.results import runs_dense
from ppe_npu.evaluation.rows import read_scores
from ppe_npu.evaluation.run_protocol import labels
from ppe_npu.evaluation.scale import PERCENT, UNDECLARED, is_percent
from ppe_npu.evaluation.statistics import bootstrap_means, interval, paired, wilson
from ppe_npu.evaluation.tuned import tuning_of

Result = Mapping[str, Any]
DENSE = "dense"
_UNPAIRED = "a predictions.jsonl or a score is missing, or the runs' samples differ"
# Settings in which runs of one row may differ. Different weights are reported by a line of their own, and different
# protocols do not meet here, because results are split by protocol first.
_OF_SEEDS = ("seed", "weights", "model", "protocol", *PROCESSOR_MARKS)


def compare(results: Sequence[Result], protocol: str | None = None) -> dict[str, Any]:
    """All numbers that a report shows.

    Args:
        results: what evaluate() returned, or results.json with the run's "folder", in the order of the rows. Several
            results with one name on one benchmark, such as those of several seeds, become one row: their mean.
        protocol: the label of the protocol that all results share, if by_protocol() has split them already.

    Returns:
        {"protocol": its label, "benchmarks": {name: see _benchmark}, "overview": see _overview, "missing": lines that
        say what could not be computed, and why}.

    Raises:
        InputError: the results are of several protocols, which are never joined; split them with by_protocol().
    """
    found = list(by_protocol(results)) if protocol is None else [protocol]
    if len(found) > 1:
        raise InputError(f"results of {len(found)} protocols ({', '.join(found)}) cannot be joined: compare one by one")
    missing: list[str] = []
    names = list(dict.fromkeys(result["settings"]["benchmark"] for result in results))
    benchmarks = {
        name: _benchmark(name, [r for r in results if r["settings"]["benchmark"] == name], missing) for name in names
    }
    weights = {result["settings"].get("weights") for result in results}
    if len(weights) > 1:
        missing.append(f"The runs use {len(weights)} different sets of weights: a difference may come from training.")
    if all(row["costs"].get("peak_memory") is None for found in benchmarks.values() for row in found["rows"]):
        missing.append("Peak memory: not measured on the CPU.")
    return {
        "protocol": found[0] if found else "",
        "benchmarks": benchmarks,
        "overview": _overview(benchmarks, missing),
        "missing": list(dict.fromkeys(missing)),
    }


def by_protocol(results: Sequence[Result]) -> dict[str, list[Result]]:
    """{label of a protocol: the results under it, in their order}."""
    found: dict[str, list[Result]] = {}
    for name, result in zip(labels([result["settings"] for result in results]), results):
        found.setdefault(name, []).append(result)
    return found


def _benchmark(name: str, results: Sequence[Result], missing: list[str]) -> dict[str, Any]:
    """The numbers of one benchmark: {"score": name of the score, "scale": of the score, see scale.declared, "headline":
    whether the score is one of the metrics, "samples", "units": number of groups that are judged together or None,
    "types" and "metrics": their names, "metrics_scale", "rows", "interleaved": see cost_table.read}.

    A row: name, method, dense, retention, runs (their number), score (mean of the runs), low, high (95 %), spread
    [least, most] of several runs, types {kind: accuracy}, types_spread, metrics {name: value}, against_dense {mean,
    low, high, p, test, count} or None, costs, tuned, errors.
    """
    missing += [
        f"{name}, {result['name']}: left out because its metrics() failed ({result['metrics_error']})."
        for result in results
        if "metrics_error" in result
    ]
    results = [result for result in results if "metrics_error" not in result] or results
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["name"], []).append(result)
    dense = next((runs for runs in groups.values() if _is_dense(runs)), None)
    rows = [_row(name, runs, dense, missing) for runs in groups.values()]
    missing += filter(None, (_unlike(name, runs) for runs in groups.values()))
    if dense is None:
        missing.append(f"{name}: there is no dense run to compare with.")
    missing += [
        f"{name}, {row['name']}: no costs, because no sample was answered." for row in rows if row["retention"] is None
    ]
    headlines = {run["headline"]["name"] for run in results if "headline" in run}
    scale = next((run.get("scale", UNDECLARED) for run in results), UNDECLARED) if headlines else PERCENT
    top = max(row["score"] for row in rows)
    if scale["maximum"] is None:
        missing.append(f"{name}: the benchmark declares no maximum for {', '.join(sorted(headlines))}: shown raw.")
    elif top > scale["maximum"] * (1 + 1e-9):
        missing.append(f"{name}: a score of {top:g} exceeds the benchmark's declared maximum of {scale['maximum']:g}.")
    return {
        "score": ", ".join(sorted(headlines)) or "accuracy",
        "scale": scale,
        "headline": bool(headlines),
        "samples": max(result["samples"] for result in results),
        "units": next((result["units"] for result in results if "units" in result), None),
        "types": list(dict.fromkeys(kind for result in results for kind in result["types"])),
        "metrics": list(dict.fromkeys(metric for result in results for metric in result.get("metrics", ()))),
        "metrics_scale": next((result.get("scale", UNDECLARED) for result in results), UNDECLARED),
        "rows": rows,
        "interleaved": cost_table.read(results),
    }


def _is_dense(runs: Sequence[Result]) -> bool:
    return runs_dense(runs[0]["settings"])


def _row(benchmark: str, runs: Sequence[Result], dense: Sequence[Result] | None, missing: list[str]) -> dict[str, Any]:
    values = [_value(run) for run in runs]
    low, high = _interval(benchmark, runs, missing)
    costs = {key: _mean([run["costs"].get(key) for run in runs]) for key in runs[0]["costs"]}
    kinds = dict.fromkeys(kind for run in runs for kind in run["types"])
    types = {kind: [run["types"][kind]["accuracy"] for run in runs if kind in run["types"]] for kind in kinds}
    return {
        "name": runs[0]["name"],
        "method": DENSE if _is_dense(runs) else runs[0].get("method", runs[0]["name"]),
        "dense": _is_dense(runs),
        "retention": costs["retention"],
        "runs": len(runs),
        "score": _mean(values),
        "low": low,
        "high": high,
        "spread": [min(values), max(values)] if len(runs) > 1 else None,
        "types": {kind: _mean(found) for kind, found in types.items()},
        "metrics": {name: _mean([r.get("metrics", {}).get(name) for r in runs]) for name in runs[0].get("metrics", ())},
        "types_spread": {kind: [min(found), max(found)] for kind, found in types.items()} if len(runs) > 1 else None,
        "against_dense": None if dense is None or _is_dense(runs) else _against(benchmark, runs, dense, missing),
        "costs": costs,
        "tuned": tuning_of(runs[0]),
        "errors": sum(run["errors"] for run in runs),
    }


def _unlike(benchmark: str, runs: Sequence[Result]) -> str:
    """A line that names the settings in which runs of one row differ beyond the seed; "" if there are none."""
    first, *others = [run["settings"] for run in runs]
    keys = dict.fromkeys(key for other in others for key in unlike(first, other))
    told = ", ".join(key for key in keys if key not in _OF_SEEDS)
    return (
        told
        and f"{benchmark}, {runs[0]['name']}: the mean of {len(runs)} runs that differ in more than the seed: {told}."
    )


def _value(run: Result) -> float:
    return run["headline"]["value"] if "headline" in run else run["accuracy"]["accuracy"]


def _interval(benchmark: str, runs: Sequence[Result], missing: list[str]) -> tuple[float | None, float | None]:
    """The score's interval at 95 %: bootstrap over samples, or Wilson's if all samples have the same score."""
    if "headline" in runs[0]:
        replicates = _replicates(runs)
        if replicates is None:
            why = next((run["headline"]["why"] for run in runs if "why" in run["headline"]), "a run has no resamples")
            missing.append(f"{benchmark}, {runs[0]['name']}: no interval ({why}).")
            return None, None
        return interval(replicates)
    scores = mean_scores(runs)
    if scores is not None and len(set(scores.values())) > 1:
        return interval(bootstrap_means(list(scores.values())))
    if len(runs) == 1:
        return runs[0]["accuracy"]["low"], runs[0]["accuracy"]["high"]
    if scores is not None:
        return wilson(next(iter(scores.values())), len(scores))
    missing.append(f"{benchmark}, {runs[0]['name']}: no interval ({_UNPAIRED}).")
    return None, None


def _against(
    benchmark: str, runs: Sequence[Result], dense: Sequence[Result], missing: list[str]
) -> dict[str, Any] | None:
    """How the score differs from dense's on the same samples, as statistics.paired gives it; None if not tested."""

    def none(why: str) -> None:
        missing.append(f"{benchmark}, {runs[0]['name']}: not compared with dense ({why}).")

    if not all(same_data(run["settings"], runs[0]["settings"]) for run in (*runs, *dense)):
        return none("the runs use different data")
    if "headline" in runs[0]:
        own, other = _replicates(runs), _replicates(dense)
        if own is None or other is None:
            return none("its metric over all samples was not resampled")
        mean = _mean([_value(run) for run in runs]) - _mean([_value(run) for run in dense])
        return _paired_replicates(own, other, mean)
    own, other = mean_scores(runs), mean_scores(dense)
    if own is None or other is None or own.keys() != other.keys():
        return none(_UNPAIRED)
    return dataclasses.asdict(paired(list(own.values()), [other[key] for key in own]))


def _paired_replicates(own: np.ndarray, other: np.ndarray, mean: float) -> dict[str, Any]:
    """Compare a metric of two methods over the same resamples; p is the bootstrap's two-sided p-value."""
    count = min(len(own), len(other))
    differences = own[:count] - other[:count]
    low, high = interval(differences)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (int(tail) + 1) / (count + 1))
    return {"mean": mean, "low": low, "high": high, "p": p, "test": "paired bootstrap", "count": count}


def _replicates(runs: Sequence[Result]) -> np.ndarray | None:
    """[draws] bootstrap replicates of the headline, averaged over the runs; None if a run has none."""
    found = [run.get("headline", {}).get("replicates") for run in runs]
    if any(values is None for values in found):
        return None
    count = min(len(values) for values in found)
    return np.mean([values[:count] for values in found], axis=0)


def mean_scores(runs: Sequence[Result]) -> dict[Any, float] | None:
    """Every sample's score, averaged over the runs; None if a run's predictions are missing or of other samples."""
    found = [_scores(run) for run in runs]
    if any(scores is None or scores.keys() != found[0].keys() for scores in found):
        return None
    return {key: _mean([scores[key] for scores in found]) for key in found[0]}


def _scores(run: Result) -> dict[Any, float] | None:
    """{index: score}, sorted by index, so that the resamples of different runs hold the same samples; None if a score
    or the whole file is missing."""
    file = Path(run.get("folder", "")) / "predictions.jsonl"
    if "folder" not in run or not file.is_file():
        return None
    scores = dict(sorted(read_scores(file).items(), key=lambda pair: str(pair[0])))
    return None if not scores or None in scores.values() else scores


def _overview(benchmarks: Mapping[str, Any], missing: list[str]) -> list[dict[str, Any]]:
    """One row per method and ratio, dense first, then by falling share of kept tokens: {"name", "method", "dense",
    "retention" (mean over benchmarks), "group", "scores" {benchmark: score or None}, "average" (of the scores in
    percent), "of_dense"}."""
    rows = []
    for name in dict.fromkeys(row["name"] for found in benchmarks.values() for row in found["rows"]):
        own = {key: next((r for r in found["rows"] if r["name"] == name), None) for key, found in benchmarks.items()}
        here = [row for row in own.values() if row]
        absent = [key for key, row in own.items() if row is None]
        if absent:
            missing.append(f"{name}: no result on {', '.join(absent)}, so no average.")
        kept = _mean([row["retention"] for row in here])
        shares = [row["score"] for key, row in own.items() if row and is_percent(benchmarks[key]["scale"])]
        rows.append(
            {
                "name": name,
                "method": here[0]["method"],
                "dense": here[0]["dense"],
                "retention": kept,
                "group": _group(here[0]["dense"], kept, here[0]["tuned"]),
                "scores": {key: row and row["score"] for key, row in own.items()},
                "average": _mean(shares) if shares and not absent else None,
                "of_dense": None if absent else _of_dense(benchmarks, own, missing),
            }
        )
    points = [key for key, found in benchmarks.items() if not is_percent(found["scale"])]
    if points:
        missing.append(f"{', '.join(points)}: not in percent, so not part of Avg.")
    order = {row["group"]: 0.0 for row in rows}
    for row in rows:
        order[row["group"]] = min(order[row["group"]], -(row["retention"] or 0.0))
    return sorted(rows, key=lambda row: (not row["dense"], order[row["group"]], row["group"]))


def _group(dense: bool, kept: float | None, tuned: str | None) -> str:
    if dense and tuned not in (None, DENSE):
        return f"Dense, 100 %, weights tuned with {tuned}"
    return "Upper bound, 100 %" if dense else "Retention unknown" if kept is None else f"Retain {100 * kept:.0f} %"


def _of_dense(benchmarks: Mapping[str, Any], own: Mapping[str, Any], missing: list[str]) -> float | None:
    """The mean over benchmarks of score / dense's score; benchmarks where dense scores 0 are left out."""
    shares = []
    for key, row in own.items():
        dense = next((r for r in benchmarks[key]["rows"] if r["dense"]), None)
        if dense is None:
            return None
        if dense["score"]:
            shares.append(row["score"] / dense["score"])
        else:
            missing.append(f"{key}: dense scores 0, so not part of % of dense.")
    return _mean(shares)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
