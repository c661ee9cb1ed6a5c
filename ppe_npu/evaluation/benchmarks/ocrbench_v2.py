"""OCRBench v2 (Fu et al. 2025, arXiv 2501.00321): 10,000 questions of 30 kinds about text in pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ppe_npu.errors import InputError
from ppe_npu.evaluation.benchmarks.dataset import Pictured, Row, Sample, mean_of_shares, several
from ppe_npu.evaluation.metrics.ocrbench_v2 import ocrbench_v2_score
from ppe_npu.evaluation.metrics.reading import Reader
from ppe_npu.evaluation.metrics.yes_no import mean_by

_SPOTTING = "text spotting en"


class OCRBenchV2(Pictured):
    """The questions in English; the score is the mean of eight abilities, each the mean over its questions.

    Args:
        reader: compares transcriptions of pages; None: as published, with NLTK's WordNet.
    """

    name = "ocrbench_v2_en"
    modality = "image"
    folder = "ocrbench_v2"
    needs = ("**/test-*.parquet",)
    home = "data set ling99/OCRBench_v2 on the Hugging Face Hub (parquet)"
    metric = "mean of eight abilities, by the rules of OCRBench_v2/eval_scripts (671a3f8); METEOR needs NLTK's WordNet"
    form = "{question}"
    edition = 2
    max_new_tokens = 2048
    headline = "overall"
    language = "en"
    abilities: ClassVar = {
        "text_recognition": ("text recognition", "fine-grained text recognition", "full-page OCR"),
        "text_detection": ("text grounding", "VQA with position"),
        "text_spotting": ("text spotting",),
        "relationship_extraction": ("key information extraction", "key information mapping"),
        "element_parsing": ("document parsing", "chart parsing", "table parsing", "formula recognition"),
        "mathematical_calculation": ("math QA", "text counting"),
        "visual_text_understanding": ("document classification", "cognition VQA", "diagram QA"),
        "knowledge_reasoning": ("reasoning VQA", "science QA", "APP agent", "ASCII art classification"),
    }

    def __init__(self, data_root: Any, reader: Reader | None = None) -> None:
        self._ability = {f"{kind} {self.language}": name for name, kinds in self.abilities.items() for kind in kinds}
        super().__init__(data_root)
        self.reader = reader or Reader.load(chinese=self.language == "cn")

    def read(self) -> list[Row]:
        rows = [row for row in super().read() if row["type"].endswith(f" {self.language}")]
        unknown = sorted({row["type"] for row in rows if row["type"] not in self._ability})
        if unknown:
            raise InputError(f"{self.name}: unknown type {', '.join(unknown)} below {self.root}: download it again")
        check_boxes(self.name, rows)
        return rows

    def sample(self, row: Row) -> Row:
        spotting = row["type"] == _SPOTTING
        truths = row["content"] if spotting else row["answers"]
        fields = {
            "index": row["id"],
            "prompt": self.form.format(question=row["question"].strip()),
            "GT": [str(truth) for truth in several(truths)],
            "type": row["type"],
            "eval": row["eval"],
            "bbox": row["bbox"],
            "boxes": row["bbox_list"],
        }
        return Sample(fields, image=partial(self.picture, row["number"], row["id"]))

    def score(self, answer: str, sample: Row) -> float:
        return ocrbench_v2_score(answer, sample, self.reader)

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """The mean score "overall", of each ability and of each kind of question."""
        rows = [row for row in rows if self._counts(row)]
        abilities = mean_by(rows, lambda row: self._ability[row["type"]])
        overall = sum(abilities.values()) / len(abilities) if abilities else 0.0
        return {"overall": overall, **abilities, **mean_by(rows, lambda row: row["type"])}

    @staticmethod
    def _counts(row: Mapping[str, Any]) -> bool:
        """Whether a row counts; a translation whose reference is empty does not."""
        return row["type"] != "text translation cn" or bool(row["GT"][0])

    def addends(self, rows: Iterable[Mapping[str, Any]]) -> dict[Any, list[float]]:
        """{index: (score, count) for each ability}, which are 0 except for the row's own ability."""
        names = list(self.abilities)
        found = {}
        for row in rows:
            at = names.index(self._ability[row["type"]])
            counts = float(self._counts(row))
            found[row["index"]] = [0.0] * (2 * len(names))
            found[row["index"]][2 * at : 2 * at + 2] = [counts * (row["score"] or 0.0), counts]
        return found

    def from_sums(self, sums: np.ndarray) -> np.ndarray:
        """The mean over the abilities that have questions."""
        return mean_of_shares(sums)


class OCRBenchV2Chinese(OCRBenchV2):
    """The questions in Chinese: five abilities."""

    name = "ocrbench_v2_cn"
    metric = "mean of five abilities, by the rules of OCRBench_v2/eval_scripts (671a3f8); jieba splits texts into words"
    language = "cn"
    abilities: ClassVar = {
        "text_recognition": ("full-page OCR",),
        "relationship_extraction": ("key information extraction", "handwritten answer extraction"),
        "element_parsing": ("document parsing", "table parsing", "formula recognition"),
        "visual_text_understanding": ("cognition VQA",),
        "knowledge_reasoning": ("reasoning VQA", "text translation"),
    }


def check_boxes(name: str, rows: Iterable[Row]) -> None:
    """Raise InputError if a word's box is not a list x, y, x, y, ... of corners."""
    for row in rows:
        if row["type"] == _SPOTTING and any(len(box) < 4 or len(box) % 2 for box in row["bbox_list"]):
            raise InputError(f"{name}: row {row['id']} has a box in bbox_list without corners: download it again")
