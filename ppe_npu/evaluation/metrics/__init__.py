"""Scores of single answers, and what is said of many."""

from __future__ import annotations

import math
from collections.abc import Iterable


def exact_match(answer: str, expected: str) -> float:
    """1.0 if the answer is the expected text, but for case, white space and a final full stop; else 0.0."""
    return float(_normal(answer) == _normal(expected))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def wilson(mean: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (of right answers, say).

    Args:
        mean: the share found, in [0, 1].
        count: of how many.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        (lower, upper); (0, 1) for a count of 0.
    """
    if count == 0:
        return 0.0, 1.0
    centre = mean + z * z / (2 * count)
    half = z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def by_type(scored: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """(type, score) pairs -> per type {"accuracy", "count", "low", "high"}, in order of first appearance."""
    groups: dict[str, list[float]] = {}
    for kind, score in scored:
        groups.setdefault(kind, []).append(score)
    return {kind: summary(scores) for kind, scores in groups.items()}


def summary(scores: list[float]) -> dict[str, float]:
    """Scores in [0, 1] -> {"accuracy", "count", "low", "high"}; low and high are Wilson's at 95 %."""
    accuracy = sum(scores) / len(scores) if scores else 0.0
    low, high = wilson(accuracy, len(scores))
    return {"accuracy": accuracy, "count": len(scores), "low": low, "high": high}
