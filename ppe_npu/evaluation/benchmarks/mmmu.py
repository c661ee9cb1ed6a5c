"""MMMU (Yue et al. 2024, arXiv 2311.16502), validation: college questions with one or several pictures."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.evaluation.benchmarks.dataset import LETTER, SHORT, Pictured, Row, Sample, lettered
from ppe_npu.evaluation.metrics import mean_by, mmmu_letter, official, open_is_right

_PICTURE = re.compile(r"<image (\d+)>")
DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip


class MMMU(Pictured):
    """The type is the subject. A picture is shown where the text first names it. lmms-eval's tasks/mmmu sorts pictures
    by number, which differs if a question names its second picture before its first."""

    name = "mmmu"
    modality = "image"
    folder = "mmmu"
    needs = ("*/validation-*.parquet",)
    home = "data set MMMU/MMMU on the Hugging Face Hub (a folder of parquet files per subject)"
    metric = (
        "accuracy, also per discipline; options are read as in lmms-eval's tasks/mmmu, open answers as in MMMU's "
        "eval_utils.py"
    )
    # By the authors' rule a letter is drawn for an answer without one; here only if the protocol has a seed for draws.
    form = "{question}\n{options}\n\n" + LETTER
    open_form = "{question}\n\n" + SHORT
    shown = "first"  # a picture is shown where it is first named; "every", "before": see place()
    max_new_tokens = 128
    columns = tuple(f"image_{number}" for number in range(1, 8))

    def sample(self, row: Row) -> Row:
        options = listed(row["options"])
        choice = row["question_type"] == "multiple-choice"
        form = self.form if choice else self.open_form
        prompt, pictures = place(form.format(question=row["question"], options=lettered(options)), self.shown)
        fields = {
            "index": row["id"],
            "prompt": prompt,
            "GT": row["answer"] if choice else listed(row["answer"]),
            "type": row["id"].split("_", 1)[1].rsplit("_", 1)[0],
            "options": options if choice else None,
            "written": row["answer"],
        }
        return Sample(fields, image=partial(self._images, row["number"], pictures))

    def _images(self, number: int, pictures: list[str]) -> list[Any]:
        return [self.picture(number, self.rows[number]["id"], f"image_{name}") for name in pictures]

    def judged(self, answer: str, sample: Row) -> float | None:
        """An open question is scored by the authors' rule, unless the protocol has its own for open questions."""
        if sample["options"] is not None:
            return super().judged(answer, sample)
        source = self.protocol and self.protocol.rules
        rule = official.rule("mmmu_open", source) if source else None
        return rule(answer, sample["written"], ()) if rule else self.score(answer, sample)

    def score(self, answer: str, sample: Row) -> float:
        if sample["options"] is not None:
            return float(mmmu_letter(answer, sample["options"]) == sample["GT"])
        return open_is_right(answer, sample["GT"])

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Accuracy per discipline, with equal weight for each question, and per subject."""
        rows = list(rows)
        discipline = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}
        subjects = mean_by(rows, lambda row: str(row["type"]))
        return {**mean_by(rows, lambda row: discipline.get(row["type"], str(row["type"]))), **subjects}


def place(text: str, shown: str = "first") -> tuple[str, list[str]]:
    """(text with <image> placeholders, the numbers of the pictures in their order).

    Args:
        shown: "first": a placeholder where a picture is first named; "every": wherever it is named, and its number as
            often, with line breaks kept; "before": all pictures, by number, before the text, which keeps their names.
    """
    if shown == "every":
        return _PICTURE.sub(_between_line_breaks, text), _PICTURE.findall(text)
    found = list(dict.fromkeys(_PICTURE.findall(text)))
    if shown == "before":
        return "<image>" * len(found) + text, sorted(found)
    for name in found:
        text = text.replace(f"<image {name}>", "<image>", 1)
    return text, found


def _between_line_breaks(name: re.Match[str]) -> str:
    """<image>, with an extra line break for each adjacent one, because splitting removes one on either side."""
    text, (start, end) = name.string, name.span()
    return "\n" * text.endswith("\n", 0, start) + "<image>" + "\n" * text.startswith("\n", end)


def listed(text: str) -> list[str]:
    """The items of a Python list written as text, as in the data; any other text is the only item."""
    if not text.startswith("["):
        return [text]
    try:
        return [str(value) for value in ast.literal_eval(text)]
    except (SyntaxError, ValueError) as error:
        raise InputError(f"MMMU has a list that cannot be parsed ({text[:60]!r}): download it again") from error
