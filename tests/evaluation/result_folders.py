"""Folders of runs with the stand-in for a model: written, read, and checked to be whole."""

from __future__ import annotations

import json
from pathlib import Path

from stand_in import Counting, Instant

from ppe_npu.evaluation.runner import Evaluation

SAMPLES = 9


def run(folder, samples: int = SAMPLES, benchmark=None, answers=None):
    with Evaluation(answers or Instant(), benchmark or Counting(samples), folder, 3, bar=False) as evaluation:
        return evaluation.run()


def lines(folder) -> list[bytes]:
    return (Path(folder) / "predictions.jsonl").read_bytes().split(b"\n")[:-1]


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in lines(folder)]


def check_whole(folder, results, samples: int = SAMPLES) -> None:
    found = rows(folder)
    assert sorted(row["index"] for row in found) == list(range(samples))
    assert all(row["answer"] == str(row["index"] + 1) for row in found)
    assert (results["samples"], results["errors"], results["accuracy"]["accuracy"]) == (samples, 0, 1.0)
