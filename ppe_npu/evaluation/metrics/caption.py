"""CIDEr-D of captions, and the tokens on which it is computed.

Source: Vedantam et al. 2015 (arXiv 1411.5726), section 7 (CIDEr-D: clipped counts, a Gaussian penalty on lengths, times
10), with the choices of tylin/coco-caption pycocoevalcap/cider: n-grams of 1 to 4 words, sigma 6, document frequencies
from the references of the pictures at hand, the mean over references and over n. The published pipeline tokenises with
Stanford's PTBTokenizer, a Java program, whose rules ptb.py restates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ppe_npu.evaluation.metrics.ptb import ptb_tokens

_LONGEST = 4  # words of an n-gram
_SIGMA = 6.0

Grams = Counter[tuple[str, ...]]


def caption_tokens(text: str) -> list[str]:
    """Words of a caption in lower case, without punctuation, tokenized as in the published pipeline (ptb.ptb_tokens):
    "isn't" -> is n't, "AT&T" and "&amp;" -> at&t and &, round brackets -> -lrb- and -rrb-."""
    return ptb_tokens(text)


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, 10 at best; the corpus's CIDEr is their mean.

    Args:
        captions: one per picture.
        references: one or more captions by people for each picture.
    """
    said = [_grams(caption_tokens(caption)) for caption in captions]
    truth = [[_grams(caption_tokens(text)) for text in texts] for texts in references]
    pictures_with = Counter(gram for texts in truth for gram in {gram for text in texts for gram in text})
    rarity = {gram: math.log(len(truth)) - math.log(count) for gram, count in pictures_with.items()}
    unseen = math.log(len(truth)) if truth else 0.0

    def weigh(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        weighed: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
        for gram, count in grams.items():
            weighed[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        return weighed

    scores = []
    for caption, texts in zip(said, truth):
        ours = weigh(caption)
        found = [_similarity(ours, weigh(text), _length(caption) - _length(text)) for text in texts]
        scores.append(10.0 * sum(found) / len(found))
    return scores


def _grams(words: Sequence[str]) -> Grams:
    return Counter(tuple(words[at : at + n]) for n in range(1, _LONGEST + 1) for at in range(len(words) - n + 1))


def _length(grams: Grams) -> int:
    """Length of a text; as published, its number of word pairs."""
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _similarity(ours: list[dict], theirs: list[dict], difference: int) -> float:
    """Mean over n of the cosine between weighted n-grams, with weights clipped to the reference's, times the penalty
    on the difference of lengths."""
    total = 0.0
    for mine, other in zip(ours, theirs):
        product = sum(min(weight, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, weight in mine.items())
        norms = _norm(mine) * _norm(other)
        total += product / norms if norms else product
    return total / _LONGEST * math.exp(-(difference**2) / (2 * _SIGMA**2))


def _norm(weights: dict) -> float:
    return math.sqrt(sum(weight**2 for weight in weights.values()))
