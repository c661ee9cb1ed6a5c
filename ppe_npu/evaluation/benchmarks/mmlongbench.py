"""MMLongBench-Doc (Ma et al. 2024, arXiv 2407.01523): questions about PDF documents of dozens of pages."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ppe_npu.errors import shown
from ppe_npu.evaluation.benchmarks.dataset import Dataset, Row, Sample
from ppe_npu.evaluation.benchmarks.pdf import num_pages, page_images
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import UNANSWERABLE, clean, document_score, mean_by

MAX_PAGES = 120


class MMLongBenchDoc(Dataset):
    """All pages are shown, 120 at most (the authors' run_lvlm.py). The type says how many pages contain the answer.

    F1 treats "Not answerable" as a refusal: precision is the mean score over the answers that are no refusals, recall
    over the questions that have an answer.
    """

    name = "mmlongbench_doc"
    modality = "image"
    folder = "mmlongbench_doc"
    needs = ("data/samples.json", "data/documents")
    home = "github.com/mayubo2333/MMLongBench-Doc (data/samples.json, data/documents), pages at 144 dots per inch"
    metric = "accuracy and F1 by lmms-eval's rule for short answers; the authors have GPT-4o shorten long ones"
    form = (
        "{question}\nAnswer with a single word or phrase. "
        "If the answer is not in the document, answer 'Not answerable'."
    )
    max_new_tokens = 64
    headline = "acc"

    def read(self) -> list[Row]:
        rows = [{**row, "number": number} for number, row in enumerate(read_json(self.file(self.needs[0])))]
        room = self.room()
        for row in rows:
            room.check(self._document(row), f"{self.name}: the document of row {row['number']}")
        named = sorted({row["doc_id"] for row in rows if not self._document(row).is_file()})
        self._refuse([f"data/documents/{name}" for name in named])
        return rows

    def _document(self, row: Row) -> Path:
        return self.root / "data" / "documents" / row["doc_id"]

    def sample(self, row: Row) -> Row:
        evidence = _evidence(row)
        fields = {
            "index": row["number"],
            "prompt": self.form.format(question=row["question"].strip()),
            "GT": str(row["answer"]),
            "type": _kind(str(row["answer"]), evidence),
            "answer_format": row["answer_format"],
        }
        return Sample(fields, image=partial(self.pages, self._document(row), evidence))

    def pages(self, path: Path, evidence: list[int]) -> list[Any]:
        """Pictures of the pages that are shown."""
        return page_images(path, range(1, min(num_pages(path), MAX_PAGES) + 1))

    def score(self, answer: str, sample: Row) -> float:
        return document_score(answer, sample["GT"], sample["answer_format"])

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """ "acc", "f1" and the accuracy per kind of question."""
        rows = [{**row, "score": row["score"] or 0.0} for row in rows]

        def mean(chosen: list[Mapping[str, Any]]) -> float:
            return sum(row["score"] for row in chosen) / len(chosen) if chosen else 0.0

        recall = mean([row for row in rows if clean(row["GT"]) != UNANSWERABLE])
        precision = mean([row for row in rows if clean(row["answer"]) != UNANSWERABLE])
        both = 2.0 * recall * precision / (recall + precision) if recall + precision else 0.0
        return {"acc": mean(rows), "f1": both, **mean_by(rows, lambda row: str(row["type"]))}


class MMLongBenchEvidence(MMLongBenchDoc):
    """Only the pages that contain the answer are shown, if there are any: lmms-eval's task, which is much easier."""

    name = "mmlongbench_doc_evidence"

    def pages(self, path: Path, evidence: list[int]) -> list[Any]:
        last = num_pages(path)
        return page_images(path, [page for page in evidence if page <= last])


def _evidence(row: Row) -> list[int]:
    """Numbers, from 1, of the pages that contain the answer, without duplicates."""
    value = row["evidence_pages"]
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
        return list(dict.fromkeys(int(page) for page in found if int(page) > 0))
    except (SyntaxError, ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"evidence_pages {shown(value)} is not a list of pages") from error


def _kind(truth: str, evidence: list[int]) -> str:
    if clean(truth) == UNANSWERABLE:
        return "unanswerable"
    return "single-page" if len(evidence) == 1 else "cross-page"
