"""Prediction rows -> what results.json holds: scores with intervals, costs, failures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppe_npu.errors import first_line
from ppe_npu.evaluation.metrics import exact_match
from ppe_npu.evaluation.statistics import by_type, interval, resamples, summary

Row = Mapping[str, Any]
PER_SAMPLE = ("tokens_before", "tokens_after", "new_tokens")
PER_BATCH = ("prefill_seconds", "seconds", "kv_bytes")  # of which every sample of a batch bears an equal share
_DRAWS, _FEWEST = 1000, 200  # bootstrap draws of a metric over all samples, and those below which it has no interval
_SECONDS = 30.0  # that they may take


def score(benchmark: Any, answer: str, sample: Row) -> float | None:
    """A single answer's score in [0, 1]: the benchmark's, else exact match with any of the right answers."""
    if hasattr(benchmark, "score"):
        found = benchmark.score(answer, sample)
        return None if found is None else float(found)
    right = sample["GT"] if isinstance(sample["GT"], (list, tuple)) else [sample["GT"]]
    return max((exact_match(answer, expected) for expected in right), default=0.0)


def summarise(benchmark: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """All rows of a run, in the benchmark's order -> results.json but for names, settings and versions."""
    answered = [row for row in rows if "error" not in row]
    return {
        "accuracy": summary([row["score"] for row in rows]),
        "types": by_type((str(row["type"]), row["score"]) for row in rows),
        **corpus(benchmark, rows),
        "costs": costs(answered),
        "samples": len(rows),
        "errors": len(rows) - len(answered),
    }


def costs(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means per sample of PER_SAMPLE and PER_BATCH; retention; ttft_seconds, the time until a batch had its first
    tokens; tokens_per_second after the first; peak_memory in bytes; batch, the mean size. None: not measured.

    Times leave out each process's first batch, which also loads kernels, where there is another one.
    """
    warm = [row for row in rows if row["warm"]] or list(rows)
    found: dict[str, float | None] = {key: _mean(rows, key) for key in (*PER_SAMPLE, "kv_bytes", "batch")}
    found |= {key: _mean(warm, key) for key in ("prefill_seconds", "seconds")}
    found["retention"] = found["tokens_after"] / found["tokens_before"] if found["tokens_before"] else 1.0
    found["ttft_seconds"] = sum(row["prefill_seconds"] * row["batch"] for row in warm) / max(len(warm), 1)
    after = sum(row["seconds"] - row["prefill_seconds"] for row in warm)
    tokens = sum(row["new_tokens"] - 1 for row in warm)
    found["tokens_per_second"] = tokens / after if tokens > 0 and after > 0 else None
    found["peak_memory"] = max((row["peak_memory"] for row in rows if row["peak_memory"] is not None), default=None)
    return found


def corpus(benchmark: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """{"metrics", "headline"} of a benchmark that has metrics over all samples; {} of another one.

    headline (where the benchmark names one, or single answers have no score): name, value, low, high and the
    bootstrap's replicates, which pair with those of another method on the same samples; without replicates "why" says
    why there are none. Samples with one "group" are drawn together.
    """
    if not hasattr(benchmark, "metrics"):
        return {}
    seen = [{key: row.get(key) for key in ("index", "type", "prompt", "GT", "answer", "score")} for row in rows]
    started = time.perf_counter()
    metrics = {name: float(value) for name, value in benchmark.metrics(seen).items()}
    seconds = time.perf_counter() - started
    name = getattr(benchmark, "headline", None)
    if name is None and all(row["score"] is None for row in rows if "error" not in row):
        name = next(iter(metrics))  # there is nothing else to call the score
    if name is None:
        return {"metrics": metrics}
    headline: dict[str, Any] = {"name": name, "value": metrics[name]}
    draws = int(min(_DRAWS, _SECONDS / max(seconds, 1e-9)))
    if draws < _FEWEST:
        return {"metrics": metrics, "headline": {**headline, "why": f"{name} takes {seconds:.1f} s to compute"}}
    try:
        replicates = _replicates(lambda drawn: benchmark.metrics(drawn)[name], seen, _groups(rows), draws)
    except Exception as error:  # a metric need not be defined on resampled rows
        return {"metrics": metrics, "headline": {**headline, "why": f"{name} of a resample: {first_line(error)}"}}
    low, high = interval(replicates)
    return {"metrics": metrics, "headline": {**headline, "low": low, "high": high, "replicates": replicates}}


def _replicates(metric, rows: Sequence[Row], groups: Sequence[list[int]], draws: int) -> list[float]:
    return [
        float(metric([rows[number] for group in drawn for number in groups[group]]))
        for block in resamples(len(groups), draws)
        for drawn in block
    ]


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    """Numbers of rows that are drawn together: those of one "group", and every other one by itself."""
    found: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        group = row.get("group")
        found.setdefault(("row", number) if group is None else ("group", group), []).append(number)
    return list(found.values())


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows])) if rows else 0.0


def title(compression: Mapping[str, Any]) -> str:
    """How reports call a compression, its ratio included."""
    if compression["method"] == "none":
        return "dense"
    return f"{method(compression)} {_ratio(compression['ratio'])}"


def method(compression: Mapping[str, Any]) -> str:
    """A compression's name without its ratio: points of one name make one curve."""
    if compression["method"] == "none":
        return "dense"
    positions = compression["positions"]
    if positions == "renumber":
        positions = "chatunivi" if compression["method"] == "dpc_knn" else "renumber"
    parts = [] if compression["method"] == "dpc_knn" else [compression["method"]]
    parts += [positions, *([f"k={compression['k']}"] if compression["k"] > 1 else [])]
    parts += [compression["members"]] if positions == "ppe" and compression["members"] != "nearest" else []
    usual = "score" if positions == "chatunivi" else "raster"
    parts += [f"{compression['order']} order"] if compression["order"] != usual else []
    parts += [f"layers {'+'.join(map(str, compression['layers']))}"] if compression["layers"] else []
    parts += [f"events {compression['temporal_ratio']:g}"] if compression["temporal_ratio"] else []
    return " ".join(parts)


def _ratio(ratio: Any) -> str:
    return "+".join(f"{part:g}" for part in ratio) if isinstance(ratio, (list, tuple)) else f"{ratio:g}"
