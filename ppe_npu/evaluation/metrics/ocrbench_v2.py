"""The rules of OCRBench v2, one for each kind of task.

Source: Fu et al. 2025 (arXiv 2501.00321), Yuliang-Liu/MultimodalOCR OCRBench_v2/eval_scripts/eval.py (commit 671a3f8).
Where that script stops with an exception (a reading of blanks alone, a field whose right value is a number, a count of
nothing), the answer is scored here all the same; a negative similarity counts as 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppe_npu.evaluation.metrics.boxes import overlap
from ppe_npu.evaluation.metrics.edits import levenshtein
from ppe_npu.evaluation.metrics.fields import chart_values, fields_score, literal, said_fields, true_fields, value_of
from ppe_npu.evaluation.metrics.outline import outline_score
from ppe_npu.evaluation.metrics.reading import Reader
from ppe_npu.evaluation.metrics.spotting import spotting_score
from ppe_npu.evaluation.metrics.teds import page_of, page_of_chart, page_of_markdown, teds

Sample = Mapping[str, Any]
_BOX = re.compile(r"[\(\[]\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*[\)\]]")
_BETWEEN = ("", ".", ". ", ",", ", ", "、", ";", "; ", " ", "和")  # separators of a handwritten answer's letters
_LONGEST = 18  # digits of a count or of a side of a box


def short_answer(answer: str, sample: Sample) -> float:
    """For a choice, whether the answer's letters equal the reference; else whether a reference of at most four words
    occurs, or the similarity to a longer one; the best of several references counts."""
    if sample["eval"] == "multiple choice":
        return float("".join(sign for sign in answer if sign.isalpha()) == sample["GT"][0])
    cased = sample["eval"] == "case sensitive"
    return _occurs(answer, sample["GT"], lambda text: _flat(text, cased), lambda truth: len(truth.split()) < 5)


def short_answer_chinese(answer: str, sample: Sample) -> float:
    """Like short_answer(), but without blanks; here a reference is long if it has at least three commas."""
    if sample["eval"] in ("multiple choice", "case sensitive"):
        return short_answer(answer, sample)
    return _occurs(answer, sample["GT"], lambda text: _flat(text).replace(" ", ""), lambda truth: truth.count(",") < 3)


def _occurs(answer: str, truths: Sequence[str], plain: Callable[[str], str], is_short: Callable[[str], bool]) -> float:
    said, best = plain(answer), 0.0
    for truth in map(plain, truths):
        if is_short(truth):
            best = max(best, float(truth in said))
        else:
            like = 1.0 - levenshtein(said, truth) / max(len(said), len(truth))
            best = max(best, like if like >= 0.5 else 0.0)
    return best


def _flat(text: str, cased: bool = False) -> str:
    return (text if cased else text.lower()).strip().replace("\n", " ")


def formula(answer: str, sample: Sample) -> float:
    """Whether a reference occurs in the answer, ignoring blanks."""
    return float(any(_unspaced(truth) in _unspaced(answer) for truth in sample["GT"]))


def formula_chinese(answer: str, sample: Sample) -> float:
    r"""Like formula(), after each \text{...} is replaced by its content."""
    bare = [re.sub(r"\\text\{([^{}]*)\}", r"\1", text) for text in (answer, *sample["GT"])]
    return formula(bare[0], {"GT": bare[1:]})


def _unspaced(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def counting(answer: str, sample: Sample) -> float:
    """Whether the reference occurs; for "regression", the closeness of the first number, or 0.0 if it is off by half or
    more."""
    if sample["eval"] == "exact match":
        return float(any(_flat(truth) in answer for truth in sample["GT"]))
    found = re.search(r"\d+", answer)
    if sample["eval"] != "regression" or not found or len(found[0]) > _LONGEST:
        return 0.0
    return max(_near(int(found[0]), int(truth)) for truth in sample["GT"])


def _near(said: int, truth: int) -> float:
    if not said or not truth:
        return float(said == truth)
    share = 1.0 - abs(said - truth) / truth
    return share if share > 0.5 else 0.0


def table(answer: str, sample: Sample) -> float:
    """TEDS of a table in HTML, or in Markdown if the question asks only for that."""
    question = sample["prompt"].lower()
    if "markdown" in question and "html" not in question:
        return teds(page_of_markdown(answer), page_of_markdown(sample["GT"][0]))
    return html_table(answer, sample)


def html_table(answer: str, sample: Sample) -> float:
    """TEDS of a table in HTML."""
    line = answer.replace("\n", "")
    found = re.search("<body.*", line) or re.search("<table.*", line)
    return teds(page_of(found[0]), page_of(sample["GT"][0])) if found else 0.0


def chart(answer: str, sample: Sample) -> float:
    """TEDS of a dictionary as a table of two columns."""
    said = chart_values(answer)
    return teds(page_of_chart(said), page_of_chart(chart_truth(sample["GT"][0]))) if said else 0.0


def chart_truth(text: str) -> dict[Any, Any]:
    """The values of a chart, which the data gives in JSON or as a Python dictionary."""
    found = value_of(text)
    return found if isinstance(found, dict) else chart_values(text)


def document(answer: str, sample: Sample) -> float:
    """Similarity of the outlines."""
    return outline_score(answer, sample["GT"][0])


def fields(answer: str, sample: Sample) -> float:
    """The fraction of fields that are right."""
    return fields_score(said_fields(answer), true_fields(sample["GT"][0]))


def grounding(answer: str, sample: Sample) -> float:
    """Intersection over union of the last box in the answer, in thousandths."""
    boxes = [tuple(map(int, found)) for found in _BOX.findall(answer) if max(map(len, found)) <= _LONGEST]
    boxes = [box for box in boxes if max(box) <= 1000]
    return overlap(boxes[-1], [int(side) for side in sample["GT"]]) if boxes else 0.0


def answer_and_box(answer: str, sample: Sample) -> float:
    """Half the score of the answer's text plus half the intersection over union of its box."""
    said = said_fields(answer)
    content = short_answer(said["answer"], {**sample, "eval": None}) if "answer" in said else 0.0
    box = literal(said.get("bbox", ""))
    try:
        place = overlap([int(side) for side in box[:4]], sample["bbox"]) if len(box) >= 4 else 0.0
    except (TypeError, ValueError, KeyError, OverflowError):  # the box is not a list of numbers
        place = 0.0
    return 0.5 * content + 0.5 * place


def spotting(answer: str, sample: Sample) -> float:
    """The F1 of words whose text and box are right; see spotting_score()."""
    return spotting_score(answer, sample["boxes"], sample["GT"])


def handwriting(answer: str, sample: Sample, reader: Reader) -> float:
    """Similarity to a short text; for letters of a choice, whether they occur joined by one of the usual separators."""
    truth = sample["GT"][0]
    if "简答" in sample["prompt"]:
        return reader.score(answer, truth)
    return float(any(between.join(truth) in answer for between in _BETWEEN))


_SHORT = (
    "APP agent", "ASCII art classification", "math QA", "reasoning VQA", "science QA", "text recognition",
    "document classification", "cognition VQA", "diagram QA",
)  # fmt: skip
RULES: dict[str, Callable[[str, Sample], float]] = {
    **{f"{kind} en": short_answer for kind in _SHORT},
    "cognition VQA cn": short_answer_chinese,
    "reasoning VQA cn": short_answer_chinese,
    "formula recognition en": formula,
    "formula recognition cn": formula_chinese,
    "text counting en": counting,
    "table parsing en": table,
    "table parsing cn": html_table,
    "chart parsing en": chart,
    "document parsing en": document,
    "document parsing cn": document,
    "key information extraction en": fields,
    "key information mapping en": fields,
    "key information extraction cn": fields,
    "VQA with position en": answer_and_box,
    "text grounding en": grounding,
    "text spotting en": spotting,
}
READINGS = ("fine-grained text recognition en", "full-page OCR en", "full-page OCR cn", "text translation cn")
HANDWRITING = "handwritten answer extraction cn"


def ocrbench_v2_score(answer: str, sample: Sample, reader: Reader) -> float:
    """The score in [0, 1] of an answer, by the rule of the sample's type.

    Args:
        sample: type, prompt, GT (a list), eval ("multiple choice", "case sensitive", "exact match", "regression" or
            None), and bbox and boxes if the type needs them.
    """
    if sample["type"] in READINGS:
        return reader.score(answer, sample["GT"][0])
    if sample["type"] == HANDWRITING:
        return handwriting(answer, sample, reader)
    return RULES[sample["type"]](answer, sample)
