"""Scores of single answers by the rules that each benchmark publishes, and what is said of many."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ppe_npu.evaluation.metrics.caption import caption_tokens, cider
from ppe_npu.evaluation.metrics.letters import (
    ai2d_letter,
    egoschema_letter,
    first_capital,
    first_character,
    leading_letter,
    lone_letter,
    longvideobench_letter,
    mmbench_letter,
    mmmu_letter,
    opening_letter,
)
from ppe_npu.evaluation.metrics.mmmu import open_candidates, open_is_right
from ppe_npu.evaluation.metrics.text import anls, bare, contains, levenshtein, relaxed_accuracy, same_words
from ppe_npu.evaluation.metrics.vqa import normalise_punctuation, normalise_vqa, normalise_words, vqa_accuracy
from ppe_npu.evaluation.metrics.word_similarity import STOP_WORDS, Taxonomy, WordNet, wups
from ppe_npu.evaluation.metrics.yes_no import (
    COGNITION,
    PERCEPTION,
    mean_by,
    mme_label,
    mme_scores,
    pope_label,
    pope_scores,
)

__all__ = [
    "COGNITION",
    "PERCEPTION",
    "STOP_WORDS",
    "Taxonomy",
    "WordNet",
    "ai2d_letter",
    "anls",
    "bare",
    "by_type",
    "caption_tokens",
    "cider",
    "contains",
    "egoschema_letter",
    "exact_match",
    "first_capital",
    "first_character",
    "leading_letter",
    "levenshtein",
    "lone_letter",
    "longvideobench_letter",
    "mean_by",
    "mmbench_letter",
    "mme_label",
    "mme_scores",
    "mmmu_letter",
    "normalise_punctuation",
    "normalise_vqa",
    "normalise_words",
    "open_candidates",
    "open_is_right",
    "opening_letter",
    "pope_label",
    "pope_scores",
    "relaxed_accuracy",
    "same_words",
    "summary",
    "vqa_accuracy",
    "wilson",
    "wups",
]


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
