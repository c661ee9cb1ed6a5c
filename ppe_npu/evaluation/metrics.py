"""Scores of single answers."""

from __future__ import annotations


def exact_match(answer: str, expected: str) -> float:
    """1.0 if the answer is the expected text, but for case, white space and a final full stop; else 0.0."""
    return float(_normal(answer) == _normal(expected))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
