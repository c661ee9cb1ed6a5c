"""GQA (Hudson and Manning 2019, arXiv 1902.09506), testdev balanced."""

from __future__ import annotations

from ppe_npu.evaluation.benchmarks.dataset import SHORT, Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import same_words


class GQA(Dataset):
    """The type is the structural type (verify, query, choose ...). Prompt: lmms-eval tasks/gqa."""

    name = "gqa"
    modality = "image"
    folder = "gqa"
    needs = ("testdev_balanced_questions.json", "images")
    home = "the GQA homepage at Stanford (questions1.2.zip, images.zip)"
    metric = "exact match, ignoring case and punctuation (lmms-eval)"
    form = "{question}\n" + SHORT

    def read(self) -> list[Row]:
        questions = read_json(self.file("testdev_balanced_questions.json"))
        return [{"id": identity, **row} for identity, row in questions.items()]

    def sample(self, row: Row) -> Row:
        return {
            "index": row["id"],
            "prompt": self.form.format(question=row["question"]),
            "GT": row["answer"],
            "type": row.get("types", {}).get("structural") or "all",
            "image_path": str(self.root / "images" / f"{row['imageId']}.jpg"),
        }

    def score(self, answer: str, sample: Row) -> float:
        return same_words(answer, sample["GT"])
