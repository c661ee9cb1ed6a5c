"""Scores of short answers and the letters that answers name, case by case; each function names its rule's source."""

from __future__ import annotations

import pytest

from ppe_npu.evaluation import metrics
from ppe_npu.evaluation.metrics import vqa

OPTIONS = ["red ball", "a cat", "the old house"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat", "cat"),
        ("two dogs, three cats", "2 dogs 3 cats"),
        ("None", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # as published
        ("Im", "im"),  # the table has it in capitals, which never match
        ("dog's", "dog 's"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("U.S.A.", "usa"),
        (".5", ".5"),
        ("t-shirt", "t shirt"),  # inside a word: a space
        ("t- shirt", "t shirt"),  # next to a space: nothing
        ("(a) b", "b"),
        ("what?", "what"),
        ("a\nb\tc", "b c"),
        ("  ", ""),
        ("", ""),
        ("Äpfel", "äpfel"),
        ("日本", "日本"),
        ("." * 40, "." * 8),  # as published, 32 full stops are taken away
    ],
)
def test_vqa_normaliser(text, normal):
    assert metrics.normalise_vqa(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("1,000 (one)", "1000 one"),  # a comma in a number: all punctuation goes
        ("1,000;one", "1000one"),
        ("a;b", "a b"),
        ("a; b", "a b"),
        ("a,b", "a b"),
        ("x@y.z", "x yz"),
        ("3.5.", "3.5"),
    ],
)
def test_vqa_punctuation(text, normal):
    assert metrics.normalise_punctuation(text) == normal


def test_contractions_have_all_spellings_with_one_apostrophe_missing():
    assert (
        vqa.CONTRACTIONS["yall'd've"] == vqa.CONTRACTIONS["y'alld've"] == vqa.CONTRACTIONS["y'all'dve"] == "y'all'd've"
    )
    assert vqa.CONTRACTIONS["'ow'sat"] == vqa.CONTRACTIONS["ow's'at"] == "'ow's'at"
    assert len(vqa.CONTRACTIONS) == 114


@pytest.mark.parametrize(
    ("answer", "humans", "score"),
    [
        ("yes", ["yes"] * 10, 1.0),
        ("yes", ["yes"] * 4 + ["no"] * 6, 1.0),  # 4 x min(1, 3/3) + 6 x min(1, 4/3)
        ("yes", ["yes"] * 3 + ["no"] * 7, 0.9),  # 3 x 2/3 + 7 x 1
        ("yes", ["yes"] * 2 + ["no"] * 8, 0.6),  # 2 x 1/3 + 8 x 2/3
        ("yes", ["yes"] + ["no"] * 9, 0.3),  # 0 + 9 x 1/3
        ("maybe", ["yes"] * 10, 0.0),
        ("", ["", ""] + ["yes"] * 8, 0.6),
        ("yes", [], 0.0),
    ],
)
def test_vqa_accuracy(answer, humans, score):
    assert metrics.vqa_accuracy(answer, humans) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("abcd", ["abcd"], 1.0),
        ("abcx", ["abcd"], 0.75),
        ("abxx", ["abcd"], 0.5),  # the threshold counts
        ("axxx", ["abcd"], 0.0),
        ("axxx", ["abcd", "axx"], 0.75),  # the best reference
        (" A  B ", ["a b"], 1.0),
        ("a", ["a  b"], 0.5),  # distance 2 of "a b", over the 4 characters given
        ("straße", ["strasse"], 5 / 7),  # lengths in capitals: STRASSE
        ("stra", ["straße"], 5 / 7),
        ("", ["a"], 0.0),
        ("", [""], 1.0),
        ("a", [], 0.0),
        ("日本", ["日本"], 1.0),
    ],
)
def test_anls(answer, references, score):
    assert metrics.anls(answer, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("first", "second", "edits"), [("kitten", "sitting", 3), ("", "abc", 3), ("ab", "ba", 2), ("é", "e", 1)]
)
def test_levenshtein(first, second, edits):
    assert metrics.levenshtein(first, second) == metrics.levenshtein(second, first) == edits


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("105", "100", 1),
        ("105.01", "100", 0),
        ("95", "100", 1),
        ("-100", "100", 0),
        ("5%", "0.05", 1),
        ("5", "5%", 0),
        ("0", "0", 1),  # there is no 5 % of 0: compared as texts
        ("0.0", "0", 0),
        ("1e2", "100", 1),
        ("1,000", "1000", 0),  # not a number to Python, so compared as text
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("nan", "5", 0),
        ("inf", "5", 0),
        ("", "5", 0),
        ("%", "5", 0),
        ("Ｙes", "yes", 0),
    ],
)
def test_relaxed_accuracy(answer, reference, score):
    assert metrics.relaxed_accuracy(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "references", "formula", "score"),
    [
        ("It says EXIT.", ["exit"], False, 1),
        ("ex it", ["exit"], False, 0),
        ("a\nb", ["A B"], False, 1),
        ("no", ["yes", "NO"], False, 1),
        ("", ["yes"], False, 0),
        ("anything", [""], False, 1),
        ("été", ["ÉTÉ"], False, 1),
        ("\\frac { a } { b }", ["\\frac{a}{b}"], True, 1),
        ("A", ["a"], True, 0),
    ],
)
def test_contains(answer, references, formula, score):
    assert metrics.contains(answer, references, formula) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Blue.", "blue", 1),
        (" blue\n", "blue", 1),
        ("t-shirt", "tshirt", 1),
        ("blue car", "blue", 0),
        ("", "", 1),
        ("", ".", 0),  # no answer is right only where none is expected
        ("—", "", 0),
    ],
)
def test_same_words(answer, reference, score):
    assert metrics.same_words(answer, reference) == score


LETTERS = [
    (metrics.scienceqa_letter, [
        ("B", "B"), (" B\n", "B"), ("B. x", "B"), ("The answer is B.", "B"),
        ("So: The answer is E", ""), ("The answer is E\n", ""),  # no further character in the line
        ("The answer is Chile", "C"),  # as published
        ("The answer is A, no: The answer is B.", ""),  # two letters: neither counts
        ("B\nx", ""),  # a line's end is not ". "
        ("A. The answer is B.", "A"), ("B. Of these\nThe answer is C.", "B"),
        ("B.", ""), ("b", ""), ("B.x", ""), ("b. x", ""), ("B) x", ""), ("F", ""), ("F. x", ""),
        ("the answer is B.", ""),
        ("The answer is (B).", ""), ("", ""), ("\n", ""), ("é", ""), ("Ｂ", ""), ("7", ""), ("The answer is ", ""),
    ]),
    (metrics.ai2d_letter, [("B", "B"), (" B. x", "B"), ("(b).", "B"), (" B", ""), ("B\n", "")]),
    (metrics.ai2d_letter, [("B) x", ""), ("b. x", ""), ("", "")]),
    (metrics.first_character, [("B", "B"), (" b", "B"), ("(B)", "("), ("", ""), ("\n", "")]),
    (metrics.first_capital, [
        ("B", "B"), ("The answer is B", "B"), ("I think D, not B", "D"), ("e", ""), ("E", ""), ("", ""),
        ("Best option: C", "B"),  # as published, a comma is missing in the list of phrases
        ("The best option is C", "C"),
    ]),
    (metrics.longvideobench_letter, [
        ("E", "E"), ("Best option: C", "C"), ("The correct option is D", "D"), ("F", ""), ("", ""),
    ]),
    (metrics.lone_letter, [("B", "B"), ("(B)", "B"), ("Bad, C", "C"), ("b", ""), ("E", ""), ("", ""), ("ÄB", "")]),
    (metrics.opening_letter, [
        ("(B) x", "B"), ("B) x", "B"), ("b", "B"), ("(B", "B"), ("B.", "B"), ("(B).", "B"), ("(B):", "B"), ("Ball", ""),
        ("Ans (B)", ""), ("", ""), ("(", ""), (".", ""), ("\n(C)", "C"),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "answer", "letter"),
    [pytest.param(rule, *case, id=f"{rule.__name__}-{case[0]}") for rule, cases in LETTERS for case in cases],
)
def test_letters(rule, answer, letter):
    assert rule(answer) == letter


@pytest.mark.parametrize(
    ("answer", "mmmu", "egoschema"),
    [
        ("B", "B", "B"),
        ("(A) or (C)", "C", "A"),
        ("A B", "B", "A"),
        ("A. or B.", "B", "A"),  # outer full stops go, so that B stands before a space
        ("A.x or B.x", "A", "A"),  # MMMU looks for " A " and " B ", which are nowhere: the first option counts
        ("(C) because A ", "C", "C"),
        ("B. because", "B", "B"),  # lmms-eval's forms: MMMU's own script finds no letter here ...
        ("NASA says so", "A", "A"),  # ... nor here
        ("I am sure it is the old house", "C", ""),  # EgoSchema's options have their letters before them ...
        ("I am sure it is c. the old house", "C", "C"),  # ... and are found with these alone
        ("It is a cat, no, the red ball", "A", ""),
        ("the old house", "", ""),  # too few words for texts
        ("", "", ""),
        ("...", "", ""),
        ("b", "", ""),
        ("ＡＢ", "", ""),
    ],
)
def test_letters_of_options(answer, mmmu, egoschema):
    assert metrics.mmmu_letter(answer, OPTIONS) == mmmu
    assert metrics.egoschema_letter(answer, OPTIONS) == egoschema


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("The answer is {C}", "C"),
        ("A and B", ""),
        ("It is a cat!", "B"),
        ("the cat", ""),
        ("there is a cat in the middle of the big green garden of ours", ""),  # longer than twice all options
        ("Z", ""),
        ("Z a cat", ""),
        ("Cannot determine the answer, B", ""),
        ("The answer is C, as B is no house", "C"),  # since VLMEvalKit's pull request 1552
        ("Answer  is **c**: or A or B", "C"),
        ("The answer is Z", ""),
        ("B it is I think so now", ""),  # six words back: and no text either
        ("", ""),
        ("猫", ""),
    ],
)
def test_mmbench_letter(answer, letter):
    assert metrics.mmbench_letter(answer, dict(zip("ABC", OPTIONS))) == letter


@pytest.mark.parametrize(
    ("answer", "texts", "numbers"),
    [
        ("The result is 1,234.567.", set(), {1234.57, 1234.0, 234.57}),  # the whole, "1,234", and what is left of it
        (
            "x = 3\nso y = 4",
            set(),
            {4.0},
        ),  # an equation counts in the last line only; the first has no word of a result
        ("x is 3\nso y = 4", set(), {3.0, 4.0}),
        ("Thus the answer is -7.", set(), {-7.0}),
        ("1.5e3", set(), {1500.0, 1.0, 3.0}),
        ("It is in Paris", {"in paris"}, set()),
        ("It is :", {"it is :"}, set()),  # a tail of punctuation does not count
        ("a", {" a", "a "}, set()),
        ("", {""}, set()),
    ],
)
def test_open_candidates(answer, texts, numbers):
    assert metrics.open_candidates(answer) == texts | numbers


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("It is 42.", ["42"], 1),
        ("42.001", ["42"], 1),
        ("42.01", ["42"], 0),
        ("about 1,000 people", ["1000"], 1),
        ("the capital is Paris", ["paris"], 1),
        ("parisian", ["Paris"], 1),  # contained
        ("vitamin c", ["c"], 1),
        ("carbon", ["c"], 0),  # a lone letter needs a space
        ("no idea", ["24/7", "3.429"], 0),
        ("so it's 24/7", ["24/7", "3.429"], 1),
        ("", ["x"], 0),
        ("π", ["π"], 1),
    ],
)
def test_open_answers(answer, references, score):
    assert metrics.open_is_right(answer, references) == score


@pytest.mark.parametrize(
    ("answer", "label"),
    [("Yes", "yes"), ("no.", "no"), ("Y", "yes"), ("n", "no"), ("x", "other"), ("", "other"), ("Nope", "no"),
     ("  yes!", "yes"), ("Maybe yes", "other"), ("ano", "no"), ("ＹＥＳ", "other")],
)  # fmt: skip
def test_mme_labels(answer, label):
    assert metrics.mme_label(answer) == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [("Yes", "yes"), ("No", "no"), ("no, none", "no"), ("NO", "yes"), ("It is not there", "no"), ("I see. No", "yes"),
     ("", "yes"), ("nothing", "yes"), ("没有", "yes"), ("no\nyes", "yes")],
)  # fmt: skip
def test_pope_labels(answer, label):
    assert metrics.pope_label(answer) == label


def test_pope_scores_without_any_yes():
    assert metrics.pope_scores([("no", "yes"), ("no", "no")]) == {
        "accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0,
    }  # fmt: skip
    assert metrics.pope_scores([])["f1"] == 0.0
