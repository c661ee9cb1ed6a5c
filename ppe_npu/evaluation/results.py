"""Prediction rows -> the contents of results.json: scores with intervals, costs, failures."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError, first_line, shown
from ppe_npu.evaluation import scale
from ppe_npu.evaluation.metrics import exact_match
from ppe_npu.evaluation.own_code import called, calling
from ppe_npu.evaluation.rows import FAULTS, Row
from ppe_npu.evaluation.statistics import bootstrap_sums, by_type, interval, resamples, summary
from ppe_npu.methods import as_method
from ppe_npu.shorthand import step_label

SMALLER = "smaller input"  # the control: a dense model with a smaller input (downsampling.py)
PER_SAMPLE = ("tokens_before", "tokens_after", "new_tokens", "prompt_kv_bytes")
PER_BATCH = ("prefill_seconds", "seconds", "kv_bytes")  # divided evenly among the samples of a batch
_DRAWS, _FEWEST = 1000, 200  # bootstrap draws of a metric over all samples, and the fewest that give an interval
_SECONDS = 30.0  # that these draws may take
_ROUNDING = 1e-9  # rounding error by which a mean may lie outside [0, 1]


def score(benchmark: Any, answer: str, sample: Mapping[str, Any]) -> float | None:
    """A single answer's score in [0, 1] by the benchmark's rule, else by exact match with any of the right answers.

    Returns:
        None if the benchmark does not score single answers.

    Raises:
        InputError: the benchmark's rule fails, or returns anything but None or a number in [0, 1].
    """
    judge = getattr(benchmark, "judged", None) or getattr(benchmark, "score", None)
    if judge is not None:
        with calling(benchmark, "score"):
            found = judge(answer, sample)
        if found is None:
            return None
        value, said = _number(found), f"score() of {called(benchmark)} returned {shown(found)}"
        if value is None:
            raise InputError(f"{said}, not a number: return one in [0, 1], or None")
        if not -_ROUNDING <= value <= 1 + _ROUNDING:
            raise InputError(f"{said}: return a number in [0, 1], or None")
        return min(max(value, 0.0), 1.0)
    right = sample["GT"] if isinstance(sample["GT"], (list, tuple)) else [sample["GT"]]
    return max((exact_match(answer, expected) for expected in right), default=0.0)


def _number(value: Any) -> float | None:
    """The value as a float; None if it is no number."""
    try:
        return None if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch raises RuntimeError for several values
        return None


def summarise(benchmark: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """All rows of a run, in the benchmark's order -> results.json without names, settings and versions."""
    answered = [row for row in rows if "error" not in row]
    return {
        "accuracy": summary([row["score"] for row in rows]),
        "types": by_type((str(row["type"]), row["score"]) for row in rows),
        **corpus(benchmark, rows),
        **_units(benchmark, rows),
        "costs": costs(answered),
        "samples": len(rows),
        "errors": len(rows) - len(answered),
    }


def _units(benchmark: Any, rows: Sequence[Row]) -> dict[str, int]:
    """{"units": number of groups} if the benchmark judges samples in groups; {} if each is judged by itself."""
    if not hasattr(benchmark, "unit"):
        return {}
    count = len({_unit(benchmark, row) for row in rows})
    return {} if count == len(rows) else {"units": count}


def _unit(benchmark: Any, row: Row) -> Any:
    with calling(benchmark, "unit"):
        found = benchmark.unit(row)
    try:
        hash(found)
    except TypeError as error:
        said = f"unit() of {called(benchmark)} returned {shown(found)}"
        raise InputError(f"{said}: return a str, a number or a tuple of them") from error
    return found


def costs(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means per sample of PER_SAMPLE and PER_BATCH; retention; ttft_seconds, the time until a batch had its first
    tokens; tokens_per_second after the first token; peak_memory in bytes; batch, the mean batch size. A value that was
    not measured is None; without rows all are.

    Times leave out each process's first batch, which also loads kernels, unless there is no other batch.
    """
    warm = [row for row in rows if row["warm"]] or list(rows)
    found: dict[str, float | None] = {key: _mean(rows, key) for key in (*PER_SAMPLE, "kv_bytes", "batch")}
    found |= {key: _mean(warm, key) for key in ("prefill_seconds", "seconds")}
    before, after = found["tokens_before"], found["tokens_after"]
    found["retention"] = None if before is None else after / before if before else 1.0
    waited = [row["prefill_seconds"] * row["batch"] for row in warm]
    found["ttft_seconds"] = sum(waited) / len(waited) if waited else None
    later = sum(row["seconds"] - row["prefill_seconds"] for row in warm)
    tokens = sum(row["new_tokens"] - 1 for row in warm)
    found["tokens_per_second"] = tokens / later if tokens > 0 and later > 0 else None
    found["peak_memory"] = max((row["peak_memory"] for row in rows if row["peak_memory"] is not None), default=None)
    return found


def corpus(benchmark: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """{"metrics", "scale" (of the metrics), "headline"} if the benchmark has metrics over all samples; otherwise {}.

    The headline is there if the benchmark names one, or if single answers have no score. It has a name, a value, low,
    high and the bootstrap's replicates, which pair with those of another method on the same samples; if there are no
    replicates, "why" gives the reason. The bootstrap draws units (benchmark.unit(row)): all rows of a unit are drawn
    together, and each repetition of a unit has its own row["copy"].
    """
    if not hasattr(benchmark, "metrics"):
        return {}
    keys = ("index", "type", "prompt", "GT", "answer", "score", "error")
    seen = [{key: row[key] for key in keys if key in row} for row in rows]
    metrics = _metrics(benchmark, seen)
    name = getattr(benchmark, "headline", None)
    found = {"metrics": metrics, "scale": scale.declared(benchmark)}
    if name is None and metrics and all(row["score"] is None for row in rows if "error" not in row):
        name = next(iter(metrics))  # single answers have no score, so the first metric is the headline
    if name is None:
        return found
    if name not in metrics:
        said = f"metrics() of {called(benchmark)} returned no {name!r}"
        raise InputError(f"{said}, the benchmark's headline: return it, or name another")
    return {**found, "headline": {"name": name, "value": metrics[name], **_spread(benchmark, name, seen)}}


def _metrics(benchmark: Any, rows: Sequence[Row]) -> dict[str, float]:
    """The benchmark's metrics.

    Raises:
        InputError: they are not names with finite numbers.
    """
    with calling(benchmark, "metrics"):
        given = benchmark.metrics(rows)
    said = f"metrics() of {called(benchmark)} returned"
    if not isinstance(given, Mapping):
        raise InputError(f"{said} a {type(given).__name__}: return a dict of names and numbers")
    found = {name: _number(value) for name, value in given.items()}
    for name, value in found.items():
        if not isinstance(name, str) or value is None or not math.isfinite(value):
            raise InputError(f"{said} {shown(name)}: {shown(given[name])}: return names and finite numbers")
    return found


def _spread(benchmark: Any, name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """{"low", "high", "replicates"} of a metric over all samples, or {"why": the reason that there are none}."""
    if not hasattr(benchmark, "unit"):
        return {"why": "the benchmark has no unit(), which says what is resampled"}
    try:
        if hasattr(benchmark, "addends"):
            with calling(benchmark, "addends"):
                values = np.array(list(benchmark.addends(rows).values()), dtype=np.float64)
            with calling(benchmark, "from_sums"):
                replicates = benchmark.from_sums(bootstrap_sums(values, _DRAWS)).tolist()
        else:
            replicates = _recomputed(benchmark, name, rows)
        if not np.isfinite(np.array(replicates, dtype=np.float64).reshape(len(replicates))).all():
            raise InputError("it is not finite")
    except FAULTS as error:  # a metric may be undefined on resampled rows
        return {"why": f"{name} failed on a resample: {first_line(error)}"}
    if len(replicates) < _FEWEST:
        return {"why": f"only {len(replicates)} resamples in {_SECONDS:.0f} s"}
    low, high = interval(replicates)
    return {"low": low, "high": high, "replicates": replicates}


def _recomputed(benchmark: Any, name: str, rows: Sequence[Row]) -> list[float]:
    """The metric on _DRAWS resamples of the rows, or on as many as _SECONDS allow."""
    units: dict[Any, list[Row]] = {}
    for row in rows:
        units.setdefault(_unit(benchmark, row), []).append(row)
    groups, replicates, started = list(units.values()), [], time.perf_counter()
    for drawn in itertools.chain.from_iterable(resamples(len(groups), _DRAWS)):
        again = [{**row, "copy": copy} for copy, unit in enumerate(drawn.tolist()) for row in groups[unit]]
        with calling(benchmark, "metrics"):
            replicates.append(float(benchmark.metrics(again)[name]))
        if time.perf_counter() - started > _SECONDS:
            break
    return replicates


def _mean(rows: Sequence[Row], key: str) -> float | None:
    known = [row[key] for row in rows if key in row]  # rows of an earlier version may lack some keys
    return float(np.mean(known)) if known else None


def run_title(settings: Mapping[str, Any]) -> str:
    """A run's name in reports: its compression's title; for the control, SMALLER and the share of tokens it gets."""
    share = settings.get("smaller_input")
    return title(settings["compression"]) if share is None else f"{SMALLER} {_ratio(share)}"


def run_method(settings: Mapping[str, Any]) -> str:
    """run_title() without the ratio."""
    return method(settings["compression"]) if settings.get("smaller_input") is None else SMALLER


def runs_dense(settings: Mapping[str, Any]) -> bool:
    """Whether a run is the reference for others: nothing compressed, and the whole input."""
    return settings.get("smaller_input") is None and is_dense(settings["compression"])


def is_dense(compression: Mapping[str, Any]) -> bool:
    """Whether a configuration, in plain values, compresses nothing."""
    return not compression["steps"] if "steps" in compression else compression["method"] == "none"


def title(compression: Mapping[str, Any]) -> str:
    """A compression's name in reports, including its ratio."""
    if is_dense(compression):
        return "dense"
    if "steps" in compression:
        ratios = [step["ratio"] for step in compression["steps"] if step.get("ratio") is not None]
        return " ".join([method(compression), *(["+".join(map(_ratio, ratios))] if ratios else [])])
    return f"{method(compression)} {_ratio(compression['ratio'])}"


def method(compression: Mapping[str, Any]) -> str:
    """A compression's name without its ratio; plots join results of one name into a curve."""
    if is_dense(compression):
        return "dense"
    counted = ["sizes counted"] if compression.get("proportional_attention") else []
    if "steps" in compression:
        parts = ["+".join(step_label(as_method(step), ratio=False) for step in compression["steps"])]
        parts += [compression["positions"], *([f"k={compression['k']}"] if compression["k"] > 1 else [])]
        return " ".join(parts + ([compression["members"]] if compression["members"] != "nearest" else []) + counted)
    positions = compression["positions"]
    usual = compression["method"] == CompressionConfig.method  # the paper's, which is not named
    if positions == "renumber" and usual:
        positions = "chatunivi"
    parts = [] if usual else [compression["method"]]
    parts += [positions, *([f"k={compression['k']}"] if compression["k"] > 1 else [])]
    parts += [compression["members"]] if positions == "ppe" and compression["members"] != "nearest" else []
    order = "score" if positions == "chatunivi" else "raster"
    parts += [f"{compression['order']} order"] if compression["order"] != order else []
    parts += [f"layers {'+'.join(map(str, compression['layers']))}"] if compression["layers"] else []
    parts += [f"events {compression['temporal_ratio']:g}"] if compression["temporal_ratio"] else []
    return " ".join(parts + counted)


def _ratio(ratio: Any) -> str:
    return "+".join(f"{part:g}" for part in ratio) if isinstance(ratio, (list, tuple)) else f"{ratio:g}"
