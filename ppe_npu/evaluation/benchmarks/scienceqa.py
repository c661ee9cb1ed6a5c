"""ScienceQA (Lu et al. 2022, arXiv 2209.09513): problems.json, a list of splits, pictures in images/test/<id>."""

from __future__ import annotations

from collections.abc import Iterable

from ppe_npu.evaluation.benchmarks.dataset import LETTER, LETTERS, Choice, Row, lettered
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import scienceqa_letter


class ScienceQA(Choice):
    """All questions of the test split, with a picture or without; the type is the subject."""

    name = "scienceqa"
    modality = "image"
    folder = "scienceqa"
    needs = ("problems.json", "pid_splits.json", "images/test")
    home = "github.com/lupantech/ScienceQA (data/scienceqa and its test.zip)"
    metric = "accuracy; letters as LLaVA's eval_science_qa.py (main, 2026) reads them"
    form = "{context}{question}\n{options}\n" + LETTER
    hint_form = "Context: {hint}\n"
    edition = 2
    scored_as = "scienceqa"

    def read(self) -> Iterable[Row]:
        problems = read_json(self.file("problems.json"))
        rows = [
            {"id": str(number), **problems[str(number)]} for number in read_json(self.file("pid_splits.json"))["test"]
        ]
        return [row for row in rows if self.wanted(row)]

    def wanted(self, row: Row) -> bool:
        """Whether a problem belongs to the benchmark."""
        return True

    def sample(self, row: Row) -> Row:
        context = self.hint_form.format(hint=row["hint"]) if row["hint"] else ""
        picture = {"image_path": str(self.root / "images" / "test" / row["id"] / row["image"])} if row["image"] else {}
        return {
            "index": row["id"],
            "prompt": self.form.format(context=context, question=row["question"], options=lettered(row["choices"])),
            "GT": LETTERS[row["answer"]],
            "type": row["subject"],
            "options": row["choices"],
            **picture,
        }

    def letter(self, answer: str, sample: Row) -> str:
        return scienceqa_letter(answer)


class ScienceQAImage(ScienceQA):
    """The questions that have a picture."""

    name = "scienceqa_img"

    def wanted(self, row: Row) -> bool:
        return bool(row["image"])
