"""RealWorldQA (xAI 2024): 765 photographs, many from vehicles, with questions that state how to answer."""

from __future__ import annotations

import re
from functools import partial

from ppe_npu.evaluation.benchmarks.dataset import LETTERS, Pictured, Row, Sample, lettered
from ppe_npu.evaluation.metrics import realworldqa_answer

_OPTION = re.compile(r"^([A-Z])\. *([^\n]*)$", re.M)


class RealWorldQA(Pictured):
    """Answers are letters, numbers or words. Prompt: the question in the data, as in lmms-eval tasks/realworldqa;
    VLMEvalKit, whose table has separate columns for options, has its own form for questions with options.

    The rule here is that of lmms-eval's filters for number words and texts of options, which its task no longer uses;
    the rule of 0.7.3, and so of the protocol lmms-eval, is lmms.realworldqa.
    """

    name = "realworldqa"
    modality = "image"
    folder = "realworldqa"
    needs = ("**/test-*.parquet",)
    home = "data set xai-org/RealworldQA on the Hugging Face Hub (parquet)"
    metric = "exact match, ignoring punctuation and case; three counts as 3, an option's text as its letter"
    form = "{question}"
    edition = 2
    choice_form: str | None = None  # a protocol's own form for questions with options

    def sample(self, row: Row) -> Row:
        asked, options = _parts(row["question"])
        form = (self.choice_form if options else None) or self.form
        fields = {
            "index": row["number"],
            "prompt": form.format(question=row["question"].strip(), asked=asked, options=lettered(options)),
            "GT": row["answer"],
            "question": row["question"],
            "options": options or None,
        }
        return Sample(fields, image=partial(self.picture, row["number"]))

    def judged(self, answer: str, sample: Row) -> float | None:
        """Score a question without options by the benchmark's own rule if VLMEvalKit's, for choices only, is in use."""
        own = self.protocol is not None and self.protocol.rules == "vlmevalkit" and not sample["options"]
        return self.score(answer, sample) if own else super().judged(answer, sample)

    def score(self, answer: str, sample: Row) -> float:
        return float(realworldqa_answer(answer, sample["question"]).lower().strip() == sample["GT"].lower().strip())


def _parts(question: str) -> tuple[str, list[str]]:
    """(question, options) of a text with lines "A. Left", "B. Right"; (whole text, []) if it has no such lines."""
    found = list(_OPTION.finditer(question))
    if len(found) < 2 or [one[1] for one in found] != list(LETTERS[: len(found)]):
        return question, []
    return question[: found[0].start()].strip(), [one[2].strip() for one in found]
