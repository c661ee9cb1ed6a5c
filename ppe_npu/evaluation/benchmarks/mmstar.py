"""MMStar (Chen et al. 2024, arXiv 2403.20330): 1,500 questions that need their picture, 250 per ability."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import LETTER, Choice, Pictured, Row, Sample, lettered
from ppe_npu.evaluation.metrics import mean_by, prefixed_letter

_OPTION = re.compile(r"\b([A-Z]): (.*?)(?=, [A-Z]: |\n|\Z)")


def _parts(question: str) -> tuple[str, dict[str, str]]:
    """(question, {letter: text}) of "Which? Options: A: red, B: blue"; if the options have another form, the whole
    text, and option texts that occur in no answer."""
    asked, _, listed = question.rpartition("Options:")
    options = dict(_OPTION.findall(listed))
    return (asked.strip(), options) if options else (question, dict.fromkeys("ABCD", "\0"))


class MMStar(Pictured, Choice):
    """The type is the ability; the question contains its options. Prompt: lmms-eval tasks/mmstar."""

    name = "mmstar"
    modality = "image"
    folder = "mmstar"
    needs = ("**/*.parquet",)
    home = "data set Lin-Chen/MMStar on the Hugging Face Hub (mmstar.parquet)"
    metric = (
        'accuracy; the first letter, or the one after "(", "option" or "the answer is" at the start (MMStar eval.py)'
    )
    form = "{question}\n" + LETTER
    choice_form: str | None = None  # a protocol's own form for questions with options in the published format

    def sample(self, row: Row) -> Row:
        asked, options = _parts(row["question"])
        question = row["question"].strip()
        form = (self.choice_form if asked != row["question"] else None) or self.form
        fields = {
            "index": str(row["index"]),
            "prompt": form.format(question=question, asked=asked, options=lettered(list(options.values()))),
            "GT": row["answer"].strip().upper(),
            "type": row["category"],
            "options": options,
        }
        return Sample(fields, image=partial(self.picture, row["number"]))

    def letter(self, answer: str, sample: Row) -> str:
        return prefixed_letter(answer)

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Accuracy per ability, then the mean over the finer classes, which is MMStar's average in lmms-eval."""
        rows = list(rows)
        finer = {str(row["index"]): str(row.get("l2_category", row["category"])) for row in self.rows}
        classes = mean_by(rows, lambda row: finer[row["index"]]).values()
        abilities = mean_by(rows, lambda row: str(row["type"]))
        return {**abilities, "mean over l2_category": sum(classes) / max(len(classes), 1)}
