"""Folders of finished runs as evaluate() writes them, with scores that a test chooses."""

from __future__ import annotations

import json
from pathlib import Path

from ppe_npu.config import CompressionConfig
from ppe_npu.evaluation.results import method, summarise, title
from ppe_npu.files import write_json, write_text

COSTS = {"prefill_seconds": 0.0125, "seconds": 0.02, "kv_bytes": 2048, "new_tokens": 3, "prompt_kv_bytes": 1024}


class Plain:
    """A benchmark without metrics of its own."""


class Points:
    """A benchmark whose score is a number of points."""

    headline = "points"
    maximum, factor = 800, 1

    def unit(self, row):
        return row["index"]

    def metrics(self, rows):
        return {"points": 20 * sum(row["score"] for row in rows)}


def write_run(
    folder: Path,
    scores: list,
    preset="dense",
    ratio=1.0,
    benchmark="layout",
    kinds=("row", "col"),
    cls=Plain,
    failed=False,
    **changes,
) -> dict:
    """Writes a finished run's folder; scores are in the order of the samples, whose types alternate."""
    config = CompressionConfig.preset(preset, **({} if preset == "dense" else {"ratio": ratio}))
    rows = []
    for number, score in enumerate(scores):
        cold = {} if number > 3 else {"prefill_seconds": 5.0, "seconds": 9.0}  # the first batch, which times leave out
        row = {"index": number, "type": kinds[number % len(kinds)], "score": score, "answer": "a", **COSTS, **cold}
        tokens = {"tokens_before": 36, "tokens_after": 36 * ratio}
        row |= {**tokens, "batch": 4, "warm": number > 3, "peak_memory": 2**20}
        wrong = {"index": number, "type": row["type"], "score": 0.0, "answer": "", "error": "a fault"}
        rows.append(wrong if failed else row)
    write_text(folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    settings = {"benchmark": benchmark, "data": f"{benchmark}'s", "dtype": "fp32", "weights": "w", "samples": len(rows)}
    settings["compression"] = json.loads(json.dumps(config.to_dict()))
    result = {
        "name": title(settings["compression"]),
        "method": method(settings["compression"]),
        **summarise(cls(), rows),
        "settings": settings,
        "versions": {"device": "a test"},
        **changes,
    }
    write_json(folder / "results.json", result)
    return {**result, "folder": str(folder)}


def some(share: float, count: int = 40) -> list[float]:
    """`count` scores, of which this share is right, evenly spread."""
    return [float(int((n + 1) * share) > int(n * share)) for n in range(count)]
