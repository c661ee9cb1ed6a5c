"""Scores of a short answer against short references: ANLS, relaxed accuracy, OCRBench's containment, GQA's match."""

from __future__ import annotations

import string
from collections.abc import Sequence

from ppe_npu.evaluation.metrics.edits import levenshtein

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def anls(answer: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one question: the best over the references, or 0 if it is below 0.5.

    Source: Biten et al. 2019 (arXiv 1905.13648), equation 1, as computed by the scripts of the Robust Reading
    Competition for DocVQA and InfographicVQA: the distance between lower-case texts with single spaces, divided by the
    length of the longer original text in upper case.
    """
    if not references:
        return 0.0
    said = " ".join(answer.strip().lower().split())
    distances = []
    for reference in references:
        length = max(len(reference.upper()), len(answer.upper()))
        distance = levenshtein(" ".join(reference.strip().lower().split()), said)
        distances.append(distance / length if length else 0.0)
    similarity = 1.0 - min(distances)
    return similarity if similarity >= 0.5 else 0.0


def relaxed_accuracy(answer: str, reference: str) -> float:
    """1.0 if a number is within 5 % of the reference, or a text equals it except for case; else 0.0.

    Source: Methani et al. 2020 (PlotQA) and Masry et al. 2022 (ChartQA, arXiv 2203.10244), section 5.1; the parsing of
    numbers (a final % divides by 100, a reference of 0 is compared as text) is that of QwenLM/Qwen-VL
    eval_mm/evaluate_vqa.py and lmms-eval.
    """
    said, truth = _number(answer), _number(reference)
    if said is not None and truth:
        return float(abs(said - truth) / abs(truth) <= 0.05)
    return float(answer.lower() == reference.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def contains(answer: str, references: Sequence[str], formula: bool = False) -> float:
    """1.0 if any reference occurs in the answer, else 0.0: OCRBench's rule.

    Source: Liu et al. 2024 (OCRBench, arXiv 2305.07895) and Yuliang-Liu/MultimodalOCR example.py.

    Args:
        formula: whether the reference is handwritten mathematics (HME100k): then case counts, and spaces do not.
    """

    def plain(text: str) -> str:
        text = (text if formula else text.lower()).strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text

    return float(any(plain(reference) in plain(answer) for reference in references))


def same_words(answer: str, reference: str) -> float:
    """1.0 if both are equal except for case, ASCII punctuation and outer white space, and the answer is not blank while
    the reference is not; else 0.0.

    Source: exact_match with ignore_case and ignore_punctuation, by which lmms-eval scores GQA (Hudson and Manning 2019,
    arXiv 1902.09506, whose script compares the strings). lmms-eval does not strip white space, see official.py.
    """
    if reference.strip() and not answer.strip():
        return 0.0
    return float(bare(answer) == bare(reference))


def bare(text: str) -> str:
    """A text in lower case without ASCII punctuation and outer white space."""
    return unpunctuated(text).strip()


def unpunctuated(text: str) -> str:
    """A text in lower case without ASCII punctuation."""
    return text.lower().translate(_NO_PUNCTUATION)
