"""MathVista (Lu et al. 2024, arXiv 2310.02255), testmini: mathematics on figures, plots and pictures."""

from __future__ import annotations

from functools import partial

from ppe_npu.evaluation.benchmarks.dataset import LETTER, ByType, Pictured, Row, Sample, lettered
from ppe_npu.evaluation.metrics import mathvista_answer

PLACES = {1: "one decimal place", 2: "two decimal places"}


class MathVista(Pictured, ByType):
    """The type is the published task (FQA, GPS, MWP, TQA, VQA). For published numbers GPT-4 extracts the answers."""

    name = "mathvista"
    modality = "image"
    folder = "mathvista"
    needs = ("data/testmini-*.parquet",)
    home = "data set AI4Math/MathVista on the Hugging Face Hub (parquet)"
    metric = "accuracy as in calculate_score.py; a rule extracts the answer where the authors use GPT-4"
    form = "{question}\n{options}\n" + LETTER
    open_form = "{question}\n{ask}"
    edition = 2
    max_new_tokens = 1024
    columns = ("decoded_image",)

    def sample(self, row: Row) -> Row:
        question = row["question"] + (f" (Unit: {row['unit']})" if row.get("unit") else "")
        choices = row.get("choices")
        if choices:
            prompt = self.form.format(question=question, options=lettered(choices))
        else:
            prompt = self.open_form.format(question=question, ask=_asked(row))
        fields = {
            "index": str(row["pid"]),
            "prompt": prompt,
            "GT": str(row["answer"]),
            "type": row["metadata"]["task"],
            "options": list(choices) if choices else None,
            "answer_type": row["answer_type"],
            "precision": row.get("precision"),
        }
        return Sample(fields, image=partial(self.picture, row["number"], row["pid"]))

    def score(self, answer: str, sample: Row) -> float:
        said = mathvista_answer(answer, sample["options"], sample["answer_type"], sample["precision"])
        return float(said is not None and said.strip() == sample["GT"].strip())


def _asked(row: Row) -> str:
    """The instruction after a question without choices (lmms-eval tasks/mathvista, format-prompt)."""
    kind = row["answer_type"]
    if kind == "integer":
        return "Answer the question using a single integer number."
    if kind == "list":
        return "Answer the question using a Python list."
    return f"Answer the question using a single floating-point number with {PLACES[int(row['precision'])]}."
