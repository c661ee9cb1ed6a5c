"""Similarity of a long transcription to the text of a page: the mean of BLEU, METEOR, F1 of words and edit similarity.

Source: OCRBench v2 (Fu et al. 2025, arXiv 2501.00321), eval_scripts/page_ocr_metric.py; BLEU and METEOR are NLTK's.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.evaluation.metrics.edits import levenshtein
from ppe_npu.utils.optional import optional

_CHINESE = re.compile("[\u4e00-\u9fa5]")
_DATA = ("wordnet", "omw-1.4")


class Reader:
    """Compares transcriptions with texts.

    Args:
        wordnet: NLTK's corpus, whose synonyms METEOR uses to match words.
        cut: splits a Chinese text into words; without it all texts are split at white space.
    """

    def __init__(self, wordnet: Any, cut: Callable[[str], list[str]] | None = None) -> None:
        translate = optional("nltk.translate", "scoring a transcription", "ppe-npu[eval]")
        self._bleu, self._meteor = translate.bleu_score.sentence_bleu, translate.meteor_score.meteor_score
        self._wordnet, self._cut = wordnet, cut

    @classmethod
    def load(cls, chinese: bool) -> Reader:
        """Make a Reader with NLTK's WordNet and, for Chinese, jieba's segmentation.

        Raises:
            InputError: one of them is not installed; the message says how to get it.
        """
        optional("nltk", "scoring a transcription", "ppe-npu[eval]")
        from nltk.corpus import wordnet

        try:
            wordnet.ensure_loaded()
        except LookupError as error:
            remedy = f"python -m nltk.downloader {' '.join(_DATA)}"
            raise InputError(f"METEOR needs NLTK data that is not installed: run {remedy}") from error
        cut = optional("jieba", "scoring a Chinese transcription", "ppe-npu[chinese]").lcut if chinese else None
        return cls(wordnet, cut)

    def score(self, answer: str, truth: str) -> float:
        """The similarity in [0, 1]; 0.0 if the answer or the text is empty."""
        if not answer or not truth:
            return 0.0
        said, right = self._words(answer, truth)
        with warnings.catch_warnings():  # BLEU warns about every order of n-grams without a match
            warnings.simplefilter("ignore")
            bleu = self._bleu([right], said)
        meteor = self._meteor([right], said, wordnet=self._wordnet)
        same = 1.0 - levenshtein(answer, truth) / max(len(answer), len(truth))
        return (bleu + meteor + _f1(set(said), set(right)) + same) / 4.0

    def _words(self, answer: str, truth: str) -> tuple[list[str], list[str]]:
        if self._cut is not None and (_CHINESE.search(answer) or _CHINESE.search(truth)):
            return self._cut(answer), self._cut(truth)
        return answer.split(), truth.split()


def _f1(said: set[str], right: set[str]) -> float:
    both = len(said & right)
    return 2.0 * both / (len(said) + len(right)) if both else 0.0
