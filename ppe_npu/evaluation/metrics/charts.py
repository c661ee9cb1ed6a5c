"""Answers about charts, which a published judge model compares by value: the part of its rules that needs no judge.

Source: princeton-nlp/CharXiv constants.py, REASONING_GRADING_INST (Wang et al. 2024, arXiv 2406.18521): "a score of 1
if and only if the two numbers are exactly equal in values", whatever their notation.
"""

from __future__ import annotations

import re
from fractions import Fraction

_POWER = re.compile(r"(?:(\S+?)\s*(?:\\times|\\cdot|×|x|\*)\s*)?10\s*(?:\^|\*\*)\s*\{?\s*([-+−]?\d+)\s*\}?")
_LARGEST = 400  # limit on digits of a number and on powers of ten
_NUMBER = re.compile(r"(?:(?<![\w.])[-+−])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


def chart_number(answer: str, truth: str) -> float:
    """1.0 if the last numbers of answer and reference have the same value: 0.01 is 10^-2, 1500 is 1.5e3; else 0.0."""
    said, right = _numbers(answer), _numbers(truth)
    return float(bool(said) and bool(right) and said[-1] == right[-1])


def chart_text(answer: str, truth: str) -> float:
    """1.0 if both have the same comma-separated terms in any order, else 0.0. Case, white space, dollars (LaTeX), and
    brackets, quotes and full stops around a term do not count."""
    return float(_terms(answer) == _terms(truth))


def _numbers(text: str) -> list[Fraction]:
    """The numbers of a text as exact fractions, in order; a power of ten and its factor are one number."""
    found = []
    for part in _POWER.finditer(text):
        factor = _numbers(part[1]) if part[1] else [Fraction(1)]
        exponent = int(part[2].replace("−", "-")) if len(part[2]) < 5 else _LARGEST
        if factor and abs(exponent) < _LARGEST:
            found.append((part.start(), factor[-1] * Fraction(10) ** exponent))
    rest = _POWER.sub(lambda part: " " * len(part[0]), text)
    for part in _NUMBER.finditer(rest):
        number = part[0].replace(",", "").replace("−", "-")
        exponent = number.lower().partition("e")[2]
        if len(number) < _LARGEST and abs(int(exponent or 0)) < _LARGEST:
            found.append((part.start(), Fraction(number)))
    return [value for _, value in sorted(found, key=lambda item: item[0])]


def _terms(text: str) -> list[str]:
    plain = " ".join(text.replace("$", "").lower().split())
    return sorted(term.strip(" ()[]'\"`.") for term in plain.split(","))
