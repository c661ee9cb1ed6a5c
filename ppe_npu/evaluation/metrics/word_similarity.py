"""WUPS of open-ended answers: how near the words of two answers are in WordNet.

Source: Malinowski and Fritz 2014 (arXiv 1410.0210), section 4, as computed by doc-doc/NExT-OE (metrics.py, eval_oe.py;
Xiao et al. 2021, arXiv 2105.08276): words are lemmatised and stop words removed; answers to yes/no and counting
questions must be equal; of several references the best counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ppe_npu.errors import InputError
from ppe_npu.utils.optional import optional

EXACT_TYPES = ("DB", "DC")  # descriptive questions: yes/no and counting
_CORPORA = {
    "wordnet": "corpora/wordnet",
    "omw-1.4": "corpora/omw-1.4",
    "punkt_tab": "tokenizers/punkt_tab",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
}

# NExT-OE's list (lmms-eval tasks/nextqa/stopwords.csv): NLTK's without words that answer questions (no, before, ...).
_STOP_WORDS = """
i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his himself
she she's her hers herself it it's its itself they them their theirs themselves what which who whom this that that'll
these those am is are was were be been being have has had having do does did doing a an the and but if or because as
until while to from of at for with about into through during again further then here there when where why how all any
each most other some such only own so than too very s t can will just don don't should should've now d ll m o re ve y
ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma mightn
mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won won't wouldn wouldn't
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


class Taxonomy(Protocol):
    """The interface to a language that WUPS needs."""

    def words(self, text: str) -> list[str]:
        """Lemmas of a text, in order."""

    def similarity(self, first: str, second: str) -> float:
        """Wu-Palmer similarity of two different words' first senses, in [0, 1]; 0.0 if one of them is unknown."""


def wups(answer: str, references: Sequence[str], kind: str, taxonomy: Taxonomy, threshold: float) -> float:
    """WUPS of one answer, in [0, 1]: the best over the references.

    Args:
        kind: NExT-QA's type of question; for EXACT_TYPES the words must be equal.
        threshold: similarities below it count one tenth (0.9 in WUPS@0.9, 0 in WUPS@0).
    """

    def plain(text: str) -> list[str]:
        return [word for word in taxonomy.words(text) if word not in STOP_WORDS]

    said, truths = plain(answer), [plain(reference) for reference in references]
    if kind in EXACT_TYPES:
        return float(said in truths)

    def near(first: str, second: str) -> float:
        if first == second:
            return 1.0
        value = taxonomy.similarity(first, second)
        return value if value >= threshold else 0.1 * value

    return max((min(_one_way(said, truth, near), _one_way(truth, said, near)) for truth in truths), default=0.0)


def _one_way(words: Sequence[str], others: Sequence[str], near: Callable[[str, str], float]) -> float:
    """The product of each word's best match among the others; words without any match are left out."""
    best = [max((near(word, other) for other in others), default=0.0) for word in words]
    best = [value for value in best if value > 0]
    product = 1.0 if best else 0.0
    for value in best:
        product *= value
    return product


class WordNet:
    """The taxonomy of NExT-OE: NLTK's WordNet, tagger and lemmatiser.

    Raises:
        InputError: NLTK or its data is not installed; the message says how to get them.
    """

    def __init__(self) -> None:
        nltk, stem = optional("nltk", "WUPS", "nltk"), optional("nltk.stem", "WUPS", "nltk")
        missing = [name for name, path in _CORPORA.items() if not _has(nltk, path)]
        if missing:
            remedy = f"python -m nltk.downloader {' '.join(missing)}"
            raise InputError(f"WUPS needs NLTK data that is not installed: run {remedy}")
        from nltk.corpus import wordnet

        self._nltk, self._wordnet = nltk, wordnet
        self._stem, self._lemmatise = stem.PorterStemmer().stem, stem.WordNetLemmatizer().lemmatize

    def words(self, text: str) -> list[str]:
        """Lemmas by part of speech; a word whose lemma WordNet lacks is stemmed or kept (pywsd lemmatize_sentence)."""
        tagged = self._nltk.pos_tag(self._nltk.word_tokenize(text))
        return [self._lemma(word.lower(), tag) for word, tag in tagged]

    def _lemma(self, word: str, tag: str) -> str:
        parts = {"NN": "n", "JJ": "a", "VB": "v", "RB": "r"}
        part = parts.get(tag[:2]) or parts.get(self._nltk.pos_tag([word])[0][1][:2], "n")
        forms = (self._lemmatise(word, pos=part), self._stem(word))
        return next((form for form in forms if self._wordnet.synsets(form)), word)

    def similarity(self, first: str, second: str) -> float:
        senses = self._wordnet.synsets(first), self._wordnet.synsets(second)
        if not all(senses):
            return 0.0
        return senses[0][0].wup_similarity(senses[1][0]) or 0.0


def _has(nltk: Any, path: str) -> bool:
    """Whether NLTK finds a folder of data or its zip archive."""
    for form in (path, f"{path}.zip"):
        try:
            nltk.data.find(form)
        except LookupError:
            continue
        return True
    return False
