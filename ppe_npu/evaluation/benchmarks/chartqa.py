"""ChartQA (Masry et al. 2022, arXiv 2203.10244), test."""

from __future__ import annotations

from collections.abc import Iterable

from ppe_npu.evaluation.benchmarks.dataset import Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import relaxed_accuracy


class ChartQA(Dataset):
    """Questions by people (type human) or generated from captions (augmented). Prompt: lmms-eval tasks/chartqa."""

    name = "chartqa"
    modality = "image"
    folder = "chartqa"
    needs = ("test/test_human.json", "test/test_augmented.json", "test/png")
    home = "github.com/vis-nlp/ChartQA (ChartQA Dataset/test)"
    metric = "relaxed accuracy at 5 %"
    form = "{question}\nAnswer the question with a single word."

    def read(self) -> Iterable[Row]:
        for kind in ("human", "augmented"):
            for number, row in enumerate(read_json(self.file(f"test/test_{kind}.json"))):
                yield {**row, "kind": kind, "number": number}

    def sample(self, row: Row) -> Row:
        return {
            "index": f"{row['kind']}/{row['number']}",
            "prompt": self.form.format(question=row["query"]),
            "GT": str(row["label"]),
            "type": row["kind"],
            "image_path": str(self.root / "test" / "png" / row["imgname"]),
        }

    def score(self, answer: str, sample: Row) -> float:
        return relaxed_accuracy(answer, sample["GT"])
