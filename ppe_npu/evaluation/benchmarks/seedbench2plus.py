"""SEED-Bench-2-Plus (Li et al. 2024, arXiv 2404.16790): charts, maps and web pages that are rich in text."""

from __future__ import annotations

from functools import partial

from ppe_npu.evaluation.benchmarks.dataset import LETTER, ByType, Choice, Pictured, Row, Sample, lettered
from ppe_npu.evaluation.metrics import first_character


class SEEDBench2Plus(Pictured, ByType, Choice):
    """The type is the kind of picture (Chart, Map, Web). Prompt: lmms-eval tasks/seedbench_2_plus."""

    name = "seedbench_2_plus"
    modality = "image"
    folder = "seedbench_2_plus"
    needs = ("**/test-*.parquet",)
    home = "data set doolayer/SEED-Bench-2-Plus on the Hugging Face Hub (parquet), which lmms-eval reads"
    metric = "accuracy; the answer's first character (lmms-eval)"
    form = "{question}\n{options}\n" + LETTER

    def sample(self, row: Row) -> Row:
        options = [row[f"choice_{letter}"] for letter in "ABCD"]
        fields = {
            "index": str(row["question_id"]),
            "prompt": self.form.format(question=row["question"], options=lettered(options)),
            "GT": row["answer"].strip().upper(),
            "type": row["question_image_type"].capitalize(),
            "options": options,
        }
        return Sample(fields, image=partial(self.picture, row["number"]))

    def letter(self, answer: str, sample: Row) -> str:
        return first_character(answer)
