"""What an answer to a question of MathVista says, in the form of its references.

Source: lupantech/MathVista evaluation/calculate_score.py, normalize_extracted_answer (Lu et al. 2024, arXiv
2310.02255). GPT-4 extracts what is normalised there; the rules that stand for it are ours.
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
    """An answer as a reference would be written; None where it has none of that kind.

    With options: the option that is the answer, or whose letter it names (rules of mmmu_letter), else the one that
    the fewest edits make of it, as published. Without: the answer if it is a number, else the last number in it, cut to
    an integer or rounded to `precision` decimals; of a list, the last that it holds.

    Args:
        options: of a multiple-choice question.
        kind: of the reference: integer, float, list or text.
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
    """The authors' quick extraction: what stands in quotes behind "The answer is"."""
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
    """The number that an answer is, else the last one in it; none that is infinite."""
    answer = answer.replace("\u2212", "-")  # the sign of typesetting
    for text in (answer, *reversed(_NUMBER.findall(answer))):
        try:
            value = float(text.replace(",", ""))
        except ValueError:
            continue
        if abs(value) < float("inf"):  # neither NaN nor infinite
            return value
    return None
