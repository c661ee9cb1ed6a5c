"""RealWorldQA (xAI 2024): 765 photographs, many from vehicles, with questions that say themselves how to answer."""

from __future__ import annotations

from functools import partial
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import Dataset, Row, Sample
from ppe_npu.evaluation.benchmarks.readers import Parquet, decode_image
from ppe_npu.evaluation.metrics import realworldqa_answer


class RealWorldQA(Dataset):
    """Letters, numbers or words. Prompt: the data's own question, as lmms-eval tasks/realworldqa asks it."""

    name = "realworldqa"
    modality = "image"
    folder = "realworldqa"
    needs = ("**/test-*.parquet",)
    home = "data set xai-org/RealworldQA of the Hugging Face hub (parquet)"
    metric = "exact match without punctuation and case; three counts as 3, an option's text as its letter (lmms-eval)"
    form = "{question}"

    def read(self) -> list[Row]:
        self._table = Parquet(self.files(self.needs[0]), large=["image"])
        return [{**row, "number": number} for number, row in enumerate(self._table.rows)]

    def sample(self, row: Row) -> Row:
        fields = {
            "index": row["number"],
            "prompt": self.form.format(question=row["question"]),
            "GT": row["answer"],
            "question": row["question"],
        }
        return Sample(fields, image=partial(self._image, row["number"]))

    def _image(self, number: int) -> Any:
        return decode_image(self._table.cell(number, "image"), f"{self.name} {number}")

    def score(self, answer: str, sample: Row) -> float:
        return float(realworldqa_answer(answer, sample["question"]).lower().strip() == sample["GT"].lower().strip())
