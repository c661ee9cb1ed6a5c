"""OCRBench (Liu et al. 2024, arXiv 2305.07895): 1000 questions of ten kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ppe_npu.evaluation.benchmarks.dataset import Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import contains

_FORMULAS = "HME100k"  # the data set of handwritten mathematics


class OCRBench(Dataset):
    """The question is the prompt; the type is the published category."""

    name = "ocrbench"
    modality = "image"
    folder = "ocrbench"
    needs = ("OCRBench.json", "OCRBench_Images")
    home = "github.com/Yuliang-Liu/MultimodalOCR (OCRBench.json and OCRBench_Images)"
    metric = "fraction of answers that contain a reference; final_score is their number (of 1000)"
    form = "{question}"
    max_new_tokens = 128
    headline = "final_score"
    maximum, factor, decimals = 1000.0, 1.0, 0

    def read(self) -> list[Row]:
        return [{**row, "number": number} for number, row in enumerate(read_json(self.file("OCRBench.json")))]

    def sample(self, row: Row) -> Row:
        answers = row["answers"]
        return {
            "index": row["number"],
            "prompt": self.form.format(question=row["question"].strip()),
            "GT": [answers] if isinstance(answers, str) else [str(answer) for answer in answers],
            "type": row["type"],
            "image_path": str(self.root / "OCRBench_Images" / row["image_path"]),
            "formula": row["dataset_name"] == _FORMULAS,
        }

    def judged(self, answer: str, sample: Row) -> float | None:
        """Formulas are scored by the benchmark's own rule under all protocols."""
        return self.score(answer, sample) if sample["formula"] else super().judged(answer, sample)

    def score(self, answer: str, sample: Row) -> float:
        return contains(answer, sample["GT"], formula=sample["formula"])

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Numbers of right answers: per category, over the categories of text recognition, and over all."""
        counts: dict[str, float] = {}
        for row in rows:
            counts[row["type"]] = counts.get(row["type"], 0.0) + (row["score"] or 0.0)
        text = sum(n for kind, n in counts.items() if kind.endswith("Recognition") and "Mathematical" not in kind)
        return {**counts, "Text Recognition": text, "final_score": sum(counts.values())}

    def addends(self, rows: Iterable[Mapping[str, Any]]) -> dict[Any, list[float]]:
        return {row["index"]: [row["score"] or 0.0] for row in rows}

    def from_sums(self, sums: np.ndarray) -> np.ndarray:
        """final_score."""
        return sums[..., 0]
