"""CIDEr-D against values worked out by hand, and the tokens of Stanford's PTBTokenizer on captions."""

from __future__ import annotations

import math

import pytest

from ppe_npu.evaluation.metrics import caption_tokens, cider


@pytest.mark.parametrize(
    ("caption", "score"),
    [
        # Two pictures, "a b" and "c d" their references: every word and pair is in one of two, so all weigh log 2.
        ("a b", 10 * (1 + 1) / 4),  # words and pairs agree, there are no longer n-grams
        ("a x", 10 * 0.5 / 4),  # one of two words; an unseen word weighs log 2 too
        ("b a", 10 * 1 / 4),
        ("a a", 10 * (1 / (2 * math.sqrt(2))) / 4),  # the second a is clipped, but lengthens the vector
        ("a b c", 10 * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)),  # a pair more than the reference
        ("c d", 0.0),
        ("", 0.0),
        ("日本", 0.0),
    ],
)
def test_by_hand(caption, score):
    assert cider([caption, ""], [["a b"], ["c d"]])[0] == pytest.approx(score)


def test_the_mean_over_references():
    alone = [cider(["a b", ""], [[text], ["c d"]])[0] for text in ("a b", "x y")]
    both = cider(["a b", ""], [["a b", "x y"], ["c d"]])[0]
    assert both == pytest.approx(sum(alone) / 2)


def test_words_of_every_picture_weigh_nothing():
    assert cider(["a b", "a"], [["a b"], ["a c"]])[0] == pytest.approx(10 * (1 + 1) / 4)
    assert cider(["a", "a"], [["a b"], ["a c"]]) == [0.0, 0.0]
    assert cider(["a b"], [["a b"]]) == [0.0]  # one picture has every word
    assert cider([], []) == []


@pytest.mark.parametrize(
    # What stanford-corenlp-3.4.1 with pycocoevalcap's list of punctuation gives.
    ("text", "tokens"),
    [
        ("A man's dog isn't running.", "a man 's dog is n't running"),
        ("Two dogs, one brown; playing!", "two dogs one brown playing"),
        ('A t-shirt-wearing boy "jumps" (high)', "a t-shirt-wearing boy jumps -lrb- high -rrb-"),
        ("It's 10:30 a.m. in the U.S.", "it 's 10:30 a.m. in the u.s."),
        ("I cannot say they'll go", "i can not say they 'll go"),
        ("the '80s, o'clock", "the '80s o'clock"),
        ("50% off $20 #1 & 1/2", "50 % off $ 20 # 1 & 1/2"),
        ("-- Mr. Smith vs. St. John ...", "mr. smith vs. st. john"),
        ("he said \u201chello\u201d and it\u2019s café", "he said hello and it 's café"),
        ("1,000 people\nwait", "1,000 people wait"),
        ("", ""),
    ],
)
def test_tokens(text, tokens):
    assert caption_tokens(text) == tokens.split()
