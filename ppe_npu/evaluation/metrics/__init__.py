"""Scores of single answers by the rules that each benchmark publishes."""

from __future__ import annotations

from ppe_npu.evaluation.metrics import boxes
from ppe_npu.evaluation.metrics.caption import caption_tokens, cider
from ppe_npu.evaluation.metrics.charts import chart_number, chart_text
from ppe_npu.evaluation.metrics.documents import UNANSWERABLE, clean, document_score
from ppe_npu.evaluation.metrics.edits import levenshtein
from ppe_npu.evaluation.metrics.letters import (
    ai2d_letter,
    egoschema_letter,
    first_capital,
    first_character,
    lone_letter,
    longvideobench_letter,
    mlvu_letter,
    mmbench_letter,
    mmmu_letter,
    mmmu_pro_letter,
    opening_letter,
    opens_with,
    prefixed_letter,
    realworldqa_answer,
    scienceqa_letter,
    tempcompass_letter,
)
from ppe_npu.evaluation.metrics.mathvista import mathvista_answer
from ppe_npu.evaluation.metrics.mmmu import open_candidates, open_is_right
from ppe_npu.evaluation.metrics.text import (
    anls,
    bare,
    contains,
    relaxed_accuracy,
    same_words,
    unpunctuated,
)
from ppe_npu.evaluation.metrics.vqa import (
    normalise_punctuation,
    normalise_vqa,
    normalise_words,
    vqa_accuracy,
    vqa_accuracy_by,
)
from ppe_npu.evaluation.metrics.word_similarity import STOP_WORDS, Taxonomy, WordNet, wups
from ppe_npu.evaluation.metrics.yes_no import (
    COGNITION,
    PERCEPTION,
    mean_by,
    mme_label,
    mme_label_published,
    mme_scores,
    pope_label,
    pope_recalled,
    pope_scores,
    word_label,
)

__all__ = [
    "COGNITION",
    "PERCEPTION",
    "STOP_WORDS",
    "UNANSWERABLE",
    "Taxonomy",
    "WordNet",
    "ai2d_letter",
    "anls",
    "bare",
    "boxes",
    "caption_tokens",
    "chart_number",
    "chart_text",
    "cider",
    "clean",
    "contains",
    "document_score",
    "egoschema_letter",
    "exact_match",
    "first_capital",
    "first_character",
    "levenshtein",
    "lone_letter",
    "longvideobench_letter",
    "mathvista_answer",
    "mean_by",
    "mlvu_letter",
    "mmbench_letter",
    "mme_label",
    "mme_label_published",
    "mme_scores",
    "mmmu_letter",
    "mmmu_pro_letter",
    "normalise_punctuation",
    "normalise_vqa",
    "normalise_words",
    "open_candidates",
    "open_is_right",
    "opening_letter",
    "opens_with",
    "pope_label",
    "pope_recalled",
    "pope_scores",
    "prefixed_letter",
    "realworldqa_answer",
    "relaxed_accuracy",
    "same_words",
    "scienceqa_letter",
    "tempcompass_letter",
    "unpunctuated",
    "vqa_accuracy",
    "vqa_accuracy_by",
    "word_label",
    "wups",
]


def exact_match(answer: str, expected: str) -> float:
    """1.0 if the answer equals the expected text except for case, white space and a final full stop; else 0.0."""
    return float(_normal(answer) == _normal(expected))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
