"""CharXiv (Wang et al. 2024, arXiv 2406.18521), validation: reasoning questions about charts from papers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import Pictured, Row, Sample
from ppe_npu.evaluation.metrics import chart_number, chart_text, mean_by

KINDS = {1: "text-in-chart", 2: "text-in-general", 3: "number-in-chart", 4: "number-in-general"}
# Instructions that follow each kind of question (constants.py, REASONING_RESP_INST).
ASKED = {
    1: (
        "    * Your final answer must be grounded to some text that is explicitly written and relevant to the question "
        "in the chart.\n"
        "    * If you need to answer multiple terms, separate them with commas.\n"
        "    * Unless specified in the question (such as answering with a letter), you are required to answer the full "
        "names of subplots and/or labels by default."
    ),
    2: (
        "    * If there are options in the question, your final answer must conform to one of the options.\n"
        "    * If there are additional instructions in the question, follow them accordingly.\n"
        "    * If there are neither options nor additional instructions, you are allowed to respond with a short "
        "phrase only."
    ),
    3: (  # "exlicitly": as published
        "    * Your final answer must be grounded to a number that is exlicitly written and relevant to the question "
        "in the chart, even if it's an approximate value.\n"
        "    * You are allowed to extract numbers within some text when needed."
    ),
}


class CharXivReasoning(Pictured):
    """The type of a question says where its answer is found, and whether it is a number.

    In papers, GPT-4o judges the answers. Here numbers are scored by the rule that the judge is given. Texts must have
    the same words as the right answer, which is stricter than the judge: their accuracy is a lower bound.

    The instructions after a question depend on the kind of its answer, as in the authors' code (inst_category). In
    lmms-eval, and under its protocol, they depend on the source of the question (reasoning_q_source).
    """

    name = "charxiv_reasoning"
    modality = "image"
    folder = "charxiv"
    needs = ("val*.parquet",)
    home = "data set princeton-nlp/CharXiv on the Hugging Face Hub (val.parquet)"
    metric = "accuracy: numbers match by value, texts by their terms, ignoring case and brackets; no GPT-4o judge"
    form = "{question}\n{asked}"
    edition = 2
    max_new_tokens = 128
    headline = "numbers"
    asked_by = "reasoning_a_type"  # the column whose number chooses the instructions after a question

    def sample(self, row: Row) -> Row:
        kind, adds, truth = int(row["reasoning_a_type"]), int(row[self.asked_by]), str(row["reasoning_a"])
        asked = ASKED[adds] if adds != 4 else f"    {_number_asked(truth)}"
        fields = {
            "index": str(row.get("figure_path") or row["number"]),
            "prompt": self.form.format(question=row["reasoning_q"], asked=asked).strip(),
            "GT": truth,
            "type": KINDS[kind],
        }
        return Sample(fields, image=partial(self.picture, row["number"]))

    def score(self, answer: str, sample: Row) -> float:
        rule = chart_number if sample["type"].startswith("number") else chart_text
        return rule(answer, sample["GT"])

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Accuracy of "numbers", which the published rule decides, of "texts", and of each kind."""
        rows = list(rows)
        halves = mean_by(rows, lambda row: "numbers" if str(row["type"]).startswith("number") else "texts")
        return {"numbers": 0.0, **halves, **mean_by(rows, lambda row: str(row["type"]))}


def _number_asked(truth: str) -> str:
    """The instruction to write a number with as many decimals as the reference."""
    _, point, decimals = truth.partition(".")
    if not point:
        return "* Your final answer must be an exact integer."
    return f"* Your final answer must be a number with {len(decimals)} decimal places."
