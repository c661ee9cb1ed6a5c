"""MMMU's open questions: candidate values in an answer, and whether one of them is right.

Source: MMMU-Benchmark/MMMU eval/eval_utils.py (parse_open_response, normalize_str, eval_open; Yue et al. 2024,
arXiv 2311.16502).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Phrases that introduce an answer: the tail of a line is the text after the last of them.
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.2e3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 12, 1.2, .5
)


def open_candidates(answer: str) -> set[str | float]:
    """Candidate values of an answer: the tails of its lines as lower-case texts, and the numbers in them, rounded to
    two decimals."""
    tails = _tails(answer)
    numbers = [number for tail in tails for pattern in _NUMBERS for number in re.findall(pattern, tail)]
    return {value for text in [*tails, *numbers] for value in _values(text)}


def open_is_right(answer: str, references: Sequence[str]) -> float:
    """1.0 if a number of the answer equals a reference, or a reference's text occurs in a tail of it; else 0.0."""
    truths = [value for reference in references for value in _values(reference)]
    for said in open_candidates(answer):
        if isinstance(said, float):
            if said in truths:
                return 1.0
        elif any(isinstance(truth, str) and truth in said for truth in truths):
            return 1.0
    return 0.0


def _tails(answer: str) -> list[str]:
    # The published code also splits at full stops before capitals, which has no effect, as the text is in lower case.
    answer = answer.strip().strip(".").lower()
    lines, tails = answer.split("\n"), []
    for number, line in enumerate(lines):
        # In the last line, the text after the last "=" is a candidate, too.
        indicators = (*_INDICATORS, "=") if number == len(lines) - 1 else _INDICATORS
        found = [line.split(indicator)[-1].strip() for indicator in indicators if indicator in line]
        tail = _shortest(found)
        if tail and tail not in _TRIVIAL:
            tails.append(tail)
    return tails or [answer]


def _shortest(found: list[str]) -> str:
    """The first of the shortest texts; as published, an empty one is replaced by the next one, whatever its length."""
    shortest = ""
    for text in found:
        if not shortest or len(text) < len(shortest):
            shortest = text
    return shortest


def _values(text: str) -> list[str | float]:
    """The forms in which a text is compared: a number rounded to two decimals, or the text in lower case; a single
    letter gets a space before or after it, so that it does not match inside a word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
