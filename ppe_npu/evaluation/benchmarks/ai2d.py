"""AI2D (Kembhavi et al. 2016, arXiv 1603.07396), test, with the labels drawn into the diagrams."""

from __future__ import annotations

from functools import partial

from ppe_npu.evaluation.benchmarks.dataset import LETTER, LETTERS, Choice, Pictured, Row, Sample, lettered
from ppe_npu.evaluation.metrics import ai2d_letter


class AI2D(Pictured, Choice):
    """Questions about school-book diagrams. Prompt and letter: lmms-eval tasks/ai2d."""

    name = "ai2d"
    modality = "image"
    folder = "ai2d"
    needs = ("**/test-*.parquet",)
    home = "data set lmms-lab/ai2d on the Hugging Face Hub (parquet)"
    metric = "accuracy; the letter is the whole answer, or is at its start before a full stop (lmms-eval 0.7.3)"
    edition = 2
    form = "{question}\n{options}\n" + LETTER

    def sample(self, row: Row) -> Row:
        fields = {
            "index": row["number"],
            "prompt": self.form.format(question=row["question"], options=lettered(row["options"])),
            "GT": LETTERS[int(row["answer"])],
            "options": list(row["options"]),
        }
        return Sample(fields, image=partial(self.picture, row["number"]))

    def letter(self, answer: str, sample: Row) -> str:
        return ai2d_letter(answer)
