"""WUPS: the formula, over a taxonomy of a few words."""

from __future__ import annotations

import sys

import pytest

from ppe_npu.errors import InputError
from ppe_npu.evaluation.metrics import STOP_WORDS, WordNet, wups

_ALIKE = {frozenset({"run", "chase"}): 0.8, frozenset({"cat", "dog"}): 0.5, frozenset({"cat", "kitten"}): 0.95}


class Small:
    """Splits words at spaces; only the pairs in _ALIKE are alike."""

    def words(self, text):
        return text.lower().split()

    def similarity(self, first, second):
        return _ALIKE.get(frozenset({first, second}), 0.0)


@pytest.mark.parametrize(
    ("answer", "reference", "kind", "at_0", "at_9"),
    [
        ("cat", "cat", "CW", 1, 1),
        ("the cat", "a cat", "CW", 1, 1),  # stop words go
        ("dog", "cat", "CW", 0.5, 0.05),  # below 0.9 a tenth counts
        ("kitten", "cat", "CW", 0.95, 0.95),
        ("chase dog", "run cat", "CH", 0.4, 0.004),  # 0.8 x 0.5; 0.08 x 0.05
        ("tree", "cat", "TN", 0, 0),  # no word is like any
        ("cat tree", "cat", "TN", 1, 1),  # a word with no match is passed over
        ("cat", "cat run", "TN", 1, 1),
        ("dog cat", "cat", "TN", 0.5, 0.05),  # the smaller of 0.5 x 1 and 1
        ("", "cat", "DL", 0, 0),
        ("the", "cat", "DL", 0, 0),
        ("猫", "猫", "DL", 1, 1),
        ("two", "two", "DC", 1, 1),
        ("the two", "two", "DC", 1, 1),
        ("two cats", "two", "DC", 0, 0),  # counting and yes/no: the same words
        ("dog", "cat", "DB", 0, 0),
        ("no", "no", "DB", 1, 1),
    ],
)
def test_wups(answer, reference, kind, at_0, at_9):
    assert wups(answer, [reference], kind, Small(), 0.0) == pytest.approx(at_0)
    assert wups(answer, [reference], kind, Small(), 0.9) == pytest.approx(at_9)


def test_the_better_of_two_references_counts():
    assert wups("dog", ["cat", "tree"], "CW", Small(), 0.0) == 0.5
    assert wups("dog", ["cat", "dog"], "CW", Small(), 0.9) == 1.0
    assert wups("two", ["three", "two"], "DC", Small(), 0.9) == 1.0


def test_words_that_answer_questions_are_no_stop_words():
    assert not STOP_WORDS & {"no", "not", "before", "after", "up", "down", "on", "off", "in", "out"}
    assert {"the", "to", "of", "is"} <= STOP_WORDS


def test_what_is_missing_is_said_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(InputError, match="pip install nltk"):
        WordNet()


def test_the_data_that_nltk_lacks_are_named(monkeypatch, tmp_path):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(InputError, match=r"python -m nltk\.downloader wordnet omw-1\.4 punkt_tab averaged_perceptron"):
        WordNet()
    for folder in ("corpora/wordnet", "corpora/omw-1.4"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(InputError, match=r"nltk\.downloader punkt_tab averaged_perceptron_tagger_eng$"):
        WordNet()
