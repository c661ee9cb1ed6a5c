"""MME (Fu et al. 2023, arXiv 2306.13394): two yes/no questions about each picture, in 14 tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppe_npu.evaluation.benchmarks.dataset import SHORT, Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_text
from ppe_npu.evaluation.metrics import COGNITION, PERCEPTION, mme_label, mme_scores

_TASKS = (*PERCEPTION, *COGNITION)
_ASKED = " Please answer yes or no."  # ends every published question; lmms-eval replaces it by its own sentence
_PICTURES = (".jpg", ".png", ".jpeg")


class MME(Dataset):
    """One folder per task, with texts beside pictures, or folders questions_answers_YN and images. Prompt: lmms-eval
    tasks/mme. For acc+, a picture with a failed sample counts as wrong.
    """

    name = "mme"
    modality = "image"
    folder = "mme"
    needs = _TASKS
    home = "the BradyFU/Awesome-Multimodal-Large-Language-Models page (MME_Benchmark_release_version)"
    metric = "per task 100 * (acc + acc+); perception (2000 at best), cognition (800), total"
    form = "{question}\n" + SHORT
    headline = "total"
    maximum, factor = 2800.0, 1.0

    def read(self) -> Iterable[Row]:
        for task in self.needs:
            texts = self.files(f"{task}/questions_answers_YN/*.txt") or self.files(f"{task}/*.txt")
            for text in texts:
                folder = text.parent.parent / "images" if text.parent.name == "questions_answers_YN" else text.parent
                lines = [line for line in read_text(text).split("\n") if line.strip()]
                for number, line in enumerate(lines):
                    yield {"task": task, "line": line, "number": number, "picture": _picture(folder, text.stem)}

    def sample(self, row: Row) -> Row:
        question, answer = row["line"].rsplit("\t", 1)
        return {
            "index": f"{row['task']}/{row['picture'].name}#{row['number']}",
            "prompt": self.form.format(question=question.strip().replace(_ASKED, "")),
            "GT": answer.strip().lower().replace(".", ""),
            "type": row["task"],
            "image_path": str(row["picture"]),
        }

    def score(self, answer: str, sample: Row) -> float:
        return float(mme_label(answer) == sample["GT"])

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """mme_scores(): the score of each task, and the totals."""
        return mme_scores((row["type"], (self.unit(row), row.get("copy")), row["score"] or 0.0) for row in rows)

    def addends(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
        """{picture: for each task, right answers, questions, 1 if all are right, 1}; zeros for other tasks."""
        pictures: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            pictures.setdefault(self.unit(row), []).append(row)
        found = {}
        for picture, asked in pictures.items():
            right = [row["score"] or 0.0 for row in asked]
            counts = [sum(right), float(len(right)), float(all(right)), 1.0]
            found[picture] = [n * (asked[0]["type"] == task) for task in _TASKS for n in counts]
        return found

    def from_sums(self, sums: np.ndarray) -> np.ndarray:
        """The total score."""
        right, questions, both, pictures = np.moveaxis(sums.reshape(*sums.shape[:-1], len(_TASKS), 4), -1, 0)
        return 100 * (right / np.maximum(questions, 1) + both / np.maximum(pictures, 1)).sum(-1)

    def unit(self, row: Mapping[str, Any]) -> str:
        """The picture, with both its questions."""
        return row["index"].rpartition("#")[0]


def _picture(folder: Path, stem: str) -> Path:
    """The picture that belongs to a text file; if there is none, the first name that it may have."""
    paths = [folder / f"{stem}{extension}" for extension in _PICTURES]
    return next((path for path in paths if path.is_file()), paths[0])
