"""Answers to MathVista's questions, brought into the form of its references.

Source: lupantech/MathVista evaluation/calculate_score.py, normalize_extracted_answer (Lu et al. 2024, arXiv
2310.02255). There GPT-4 extracts the answer that is normalised; the rules that replace it here are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from ppe_npu.evaluation.metrics.edits import levenshtein
from ppe_npu.evaluation.metrics.letters import mmmu_letter

_NUMBER = re.compile(r"(?:(?<![\w.])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_LIST = re.compile(r"\[[^\[\]]*\]")


def mathvista_answer(answer: str, options: Sequence[str] | None, kind: str, precision: float | None) -> str | None:
    """An answer in the form of a reference; None if a number is needed and the answer has none.

    With options: the option that equals the answer or whose letter it names (by the rules of mmmu_letter), else, as
    published, the option with the smallest edit distance. Without: for a number, the answer if it is one, else the last
    number in it, truncated to an integer or rounded to `precision` decimals; for a list, the last list in it.

    Args:
        options: the options of a multiple-choice question.
        kind: the reference's kind: integer, float, list or text.
        precision: decimals of a float.
    """
    answer = _quoted(answer.strip())
    if options:
        return _option(answer, options)
    if kind == "list":
        found = _LIST.findall(answer)
        return found[-1] if found else answer
    if kind not in ("integer", "float"):
        return answer
    value = _value(answer)
    if value is None:
        return None
    return str(int(value)) if kind == "integer" else str(round(value, int(precision or 0)))


def _quoted(answer: str) -> str:
    """The authors' quick extraction: the text in quotes after "The answer is", if there is one; else the answer."""
    found = re.search(r'The answer is "(.*)"\.', answer)
    return found[1] if found else answer


def _option(answer: str, options: Sequence[str]) -> str:
    if answer in options or not answer:
        return answer
    bracketed = re.search(r"\(([a-zA-Z])\)", answer)
    letter = bracketed[1].upper() if bracketed else mmmu_letter(answer, options)
    number = ascii_uppercase.find(letter) if letter else -1
    if 0 <= number < len(options):
        return options[number]
    return min(options, key=lambda option: levenshtein(answer, option))


def _value(answer: str) -> float | None:
    """The number that an answer is, else the last one in it; NaN and infinite ones are ignored; None without any."""
    answer = answer.replace("\u2212", "-")  # the typographic minus sign
    for text in (answer, *reversed(_NUMBER.findall(answer))):
        try:
            value = float(text.replace(",", ""))
        except ValueError:
            continue
        if abs(value) < float("inf"):  # neither NaN nor infinite
            return value
    return None
