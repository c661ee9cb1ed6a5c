"""The scoring of MMLongBench-Doc: numbers, texts and lists, each by a rule of its own.

Source: Ma et al. 2024 (MMLongBench-Doc, arXiv 2407.01523), eval/eval_score.py, where GPT-4o first extracts a short
answer from the model's. There is no such step here; the prompt asks for a short answer, as in lmms-eval 0.7.3
tasks/mmlongbench_doc.
"""

from __future__ import annotations

import ast
import math
import re

from ppe_npu.evaluation.metrics.edits import levenshtein

UNANSWERABLE = "not answerable"
_NUMBER = re.compile(r"[-+]?\d*\.?\d+")
# Codes in which every character counts: numbers with an extension, dates, months, e-mail addresses.
_EXACT = (
    r"\b\d+(-\d+|\s\d+)?\b",
    r"\b\d{4}[-\s]\d{2}[-\s]\d{2}\b",
    r"\b\d{4}[-\s]\d{2}\b",
    r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}",
)
_UNITS = (" miles", " mile", " million")


def document_score(answer: str, truth: str, form: str) -> float:
    """The score in [0, 1] of an answer about a document.

    Args:
        answer: the model's answer.
        truth: the reference as written in the data; a list is the text of a Python list.
        form: the reference's answer_format: Int, Float, Str, List or None (if the document has no answer).
    """
    form = form.strip().lower()
    if form in ("int", "integer"):
        said, right = _number(answer), _number(truth)
        return float(said is not None and right is not None and int(said) == int(right))
    if form == "float":
        said, right = _number(answer), _number(truth)
        return float(said is not None and right is not None and _close(said, right))
    if form == "list":
        return _lists(_listed(answer), _listed(truth))
    if form == "none":
        return float(clean(answer) == UNANSWERABLE)
    return _texts(clean(answer), clean(truth))


def clean(text: str) -> str:
    """A text in lower case with single spaces, without round brackets and their content, quotes, $, % and units."""
    text = re.sub(r"\s*\([^)]*\)", "", text.lower().strip()).strip()
    text = re.sub(r"^['\"]|['\"]$", "", text).strip().lstrip("$").strip().rstrip("%").strip()
    for unit in _UNITS:
        text = text.removesuffix(unit).strip()
    return " ".join(text.split())


def _number(text: str) -> float | None:
    """The first number of a text, ignoring commas; None if there is none."""
    found = _NUMBER.search(text.replace(",", ""))
    value = float(found[0]) if found else math.inf
    return value if math.isfinite(value) else None


def _close(said: float, right: float) -> bool:
    """Whether two numbers differ by at most 1 %, or are equal when rounded to the fewer decimals of the two (at least
    two); either may be a percentage of the other's unit."""

    def decimals(value: float) -> int:
        return len(str(value).partition(".")[2]) if "." in str(value) else 3

    for candidate in (right / 100.0, right, right * 100.0):
        places = max(min(decimals(said), decimals(candidate)), 2)
        if math.isclose(candidate, said, rel_tol=0.01) or round(said, places) == round(candidate, places):
            return True
    return False


def _listed(text: str) -> list[str]:
    """The cleaned entries of a Python list, sorted; any other text is a list of one entry."""
    try:
        found = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        found = text
    entries = found if isinstance(found, list) else [] if found is None else [found]
    return sorted(clean(str(entry)) for entry in entries)


def _lists(said: list[str], right: list[str]) -> float:
    """Score of a list: 0.0 if the lengths differ; numbers and codes must all be equal; for texts, the worst pair's
    similarity."""
    if len(said) != len(right):
        return 0.0
    if not right:
        return 1.0
    if _number(right[0]) is not None or _is_exact(right[0]):
        return float(said == right)
    return min(_similarity(one, other) for one, other in zip(said, right))


def _texts(said: str, right: str) -> float:
    return float(said == right) if _is_exact(right) else _similarity(said, right)


def _is_exact(text: str) -> bool:
    """Whether every character of a reference counts."""
    named = "https://" in text or "http://" in text or text.endswith((".py", ".ipynb")) or text.startswith("page")
    return named or "a.m." in text or "p.m." in text or any(re.fullmatch(pattern, text) for pattern in _EXACT)


def _similarity(said: str, right: str) -> float:
    """1 - edits per character of the longer text, or 0.0 if that is at most 0.5."""
    if not said or not right:
        return float(said == right)
    found = 1.0 - levenshtein(said, right) / max(len(said), len(right))
    return found if found > 0.5 else 0.0
