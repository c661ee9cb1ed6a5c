"""Image benchmarks, each on hand-made data and answers: the prompt as published, and scores worked out by hand."""

from __future__ import annotations

from copy import copy

import numpy as np
import pytest
from prediction_rows import rows_of

from ppe_npu.evaluation import protocols

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
VIZWIZ = "Can you tell me what this is?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"

# name -> (prompt, GT, type) of the first sample.
FIRST = {
    "mmbench_en": (
        "Look closely. What is it? There are several options:\nA. a red ball\nB. a cat\nC. a tree\n\n" + LETTER,
        "B", "identity",
    ),
    "mmbench_cn": (
        "图里是什么？ 有如下几个选项：\nA. 红球\nB. 猫\n\n请直接使用所提供的选项字母作为答案回答。", "B", "identity",
    ),
    "scienceqa": ("Which is a solid?\nA. ice\nB. steam\n" + LETTER, "A", "natural science"),
    "scienceqa_img": ("Which is a solid?\nA. ice\nB. steam\n" + LETTER, "A", "natural science"),
    "textvqa": ("What brand is it?\n" + SHORT, ["nokia"] * 6 + ["nokia phone"] * 2 + ["samsung", "unanswerable"], None),
    "docvqa": ("What is the ‘actual’ value?\n" + SHORT, ["0.28", "Gebühr"], "table"),
    "infovqa": ("Which app is named?\n" + SHORT, ["pinterest"], "single span"),
    "ocrbench": ("what is written in the image?", ["CENTRE"], "Regular Text Recognition"),
    "chartqa": ("How many?\nAnswer the question with a single word.", "14", "human"),
    "flickr30k": (
        "Provide a one-sentence caption for the provided image.",
        ["A man rides a horse.", "A man riding a horse on the beach."], None,
    ),
    "gqa": ("Is it overcast?\n" + SHORT, "no", "verify"),
    "vizwiz": (VIZWIZ + SHORT, ["unanswerable"] * 4 + ["no"] * 2 + ["2 cans", "two cans", "2 cans.", "a can"], "other"),
    "pope": ("Is there a dog in the image?\n" + SHORT, "yes", "random"),
    "mme": ("Is it red?\n" + SHORT, "yes", "existence"),
    "ai2d": ("Which stage?\nA. larva\nB. adult\nC. egg\nD. pupa\n" + LETTER, "B", None),
    "mmmu": (
        "Compare <image> and <image>; <image 2> is\nA. older than <image 1>\nB. newer\nC. Monet's\n\n" + LETTER,
        "B", "Art_Theory",
    ),
    "seedbench_image": ("How many?\nA. One\nB. Two\nC. Three\nD. Four\n" + LETTER, "A", "Instances Counting"),
}  # fmt: skip

# (name, sample, answer, score); comments state the rule that decides.
SCORES = [
    # MMBench: VLMEvalKit can_infer: one lone letter among the last words, else one option's text
    ("mmbench_en", 0, "B", 1), ("mmbench_en", 0, "B. a cat", 1), ("mmbench_en", 0, "The answer is (B).", 1),
    ("mmbench_en", 0, "It is a CAT", 1),  # text, whatever its case
    ("mmbench_en", 0, "It is A CAT", 0),  # as published, the article is taken for option A
    ("mmbench_en", 0, "A or B", 0), ("mmbench_en", 0, "a cat and a tree", 0),  # two: undecided
    ("mmbench_en", 0, "B is right because it looks so", 0),  # not among the last four words
    ("mmbench_en", 0, "b", 0), ("mmbench_en", 0, "", 0), ("mmbench_en", 0, "Ｂ", 0),  # a full-width letter is another
    ("mmbench_en", 0, "a cat, which sits in front of the old house in the garden there", 0),  # longer than 2 x options
    ("mmbench_cn", 0, "猫", 1), ("mmbench_cn", 0, "答案是 B", 1), ("mmbench_cn", 0, "答案是B", 0),
    ("mmbench_cn", 0, "红球", 0),
    # ScienceQA: a capital alone, or with a full stop and a space first, or behind "The answer is "
    ("scienceqa", 0, "A", 1), ("scienceqa", 0, " A\n", 1), ("scienceqa", 0, "a", 0),
    ("scienceqa", 0, "A. ice", 1), ("scienceqa", 0, "ice", 0),
    ("scienceqa", 0, "a. ice", 0), ("scienceqa", 0, "(A)", 0), ("scienceqa", 0, "", 0), ("scienceqa", 1, "C. z", 1),
    ("scienceqa", 1, "C.", 0), ("scienceqa", 1, "C.z", 0), ("scienceqa", 1, "The answer is C", 0),
    ("scienceqa", 1, "The answer is C.", 1), ("scienceqa_img", 0, "A. ice", 1),
    # VQA accuracy of ten: "nokia" is said by 6: any nine hold 5 or 6, so 1; "nokia phone" by 2: (8 x 2/3 + 2 x 1/3)/10
    ("textvqa", 0, "Nokia", 1), ("textvqa", 0, "the nokia.", 1), ("textvqa", 0, "nokia, phone", 0.6),
    ("textvqa", 0, "nokia phone", 0.6), ("textvqa", 0, "samsung", 0.3), ("textvqa", 0, "", 0),
    ("textvqa", 0, "ノキア", 0),
    # "2 cans", "two cans", "2 cans." are one answer: said by 3: (7 x 1 + 3 x 2/3)/10
    ("vizwiz", 0, "two cans", 0.9), ("vizwiz", 0, "can", 0.3), ("vizwiz", 0, "Unanswerable", 1),
    ("vizwiz", 0, "No", 0.6),
    # ANLS: 1 - distance/longer, 0 below 0.5
    ("docvqa", 0, "0.28", 1), ("docvqa", 0, "0.29", 0.75), ("docvqa", 0, "0.2", 0.75), ("docvqa", 0, "GEBÜHR", 1),
    ("docvqa", 0, "Gebuhr", 5 / 6), ("docvqa", 0, "1.39", 0), ("docvqa", 0, "", 0), ("docvqa", 0, " 0.28 ", 1),
    ("infovqa", 0, "Pinterest", 1), ("infovqa", 0, "pin", 0), ("infovqa", 0, "pinterests", 0.9),
    # OCRBench: contained; formulas without spaces but with case
    ("ocrbench", 0, "The word is centre.", 1), ("ocrbench", 0, "cent re", 0), ("ocrbench", 0, "", 0),
    ("ocrbench", 1, "12 DOLLARS", 1), ("ocrbench", 1, "$ 12", 1), ("ocrbench", 1, "$12", 0),
    ("ocrbench", 2, "$x^{2}+A$", 1), ("ocrbench", 2, "x^{2}+a", 0), ("ocrbench", 2, "x^{2}\n+A", 1),
    # ChartQA: numbers within 5 %, else the same text
    ("chartqa", 0, "14", 1), ("chartqa", 0, "13.3", 1), ("chartqa", 0, "14.7", 1), ("chartqa", 0, "13.29", 0),
    ("chartqa", 0, "fourteen", 0), ("chartqa", 0, "14%", 0), ("chartqa", 0, "1400%", 1), ("chartqa", 0, "", 0),
    ("chartqa", 1, "italy", 1), ("chartqa", 1, "Italy.", 0), ("chartqa", 0, "nan", 0),
    # GQA: case and punctuation aside
    ("gqa", 0, "No.", 1), ("gqa", 0, "no", 1), ("gqa", 0, "not", 0), ("gqa", 0, "", 0), ("gqa", 0, "no, it is", 0),
    # POPE: No, no or not in the first sentence; all else is yes
    ("pope", 0, "Yes", 1), ("pope", 0, "There is. No, wait.", 1), ("pope", 0, "No", 0), ("pope", 0, "", 1),
    ("pope", 1, "No, there is not", 1), ("pope", 1, "not", 1), ("pope", 1, "NO", 0), ("pope", 1, "nope", 0),
    # MME: the whole answer, one letter, or its first four characters
    ("mme", 0, "Yes.", 1), ("mme", 0, "y", 1), ("mme", 0, "yes, it is", 1), ("mme", 0, "It is. Yes", 0),
    ("mme", 0, "", 0),
    ("mme", 1, "No", 1), ("mme", 1, "n", 1), ("mme", 1, "none", 1), ("mme", 1, "I know", 0), ("mme", 1, "否", 0),
    # AI2D
    ("ai2d", 0, "B. adult", 1), ("ai2d", 0, "B", 1), ("ai2d", 0, "(b)", 1), ("ai2d", 0, "adult", 0), ("ai2d", 0, "", 0),
    ("ai2d", 1, "C.", 1), ("ai2d", 1, "The answer is C.", 0),
    # MMMU options as lmms-eval: (B), then "B ", then "B.", the last of several; the text only in longer answers
    ("mmmu", 0, "(B)", 1), ("mmmu", 0, "A is not, B is", 1), ("mmmu", 0, "(A) no, (B)", 1), ("mmmu", 0, "B. newer", 1),
    ("mmmu", 0, "I would say that it is newer", 1), ("mmmu", 0, "newer", 0), ("mmmu", 0, "", 0), ("mmmu", 0, "b", 0),
    # MMMU open: numbers of the tail behind "is", "=" ..., rounded to 0.01; texts contained
    ("mmmu", 1, "The area is 3.50.", 1), ("mmmu", 1, "A = 3.499", 1), ("mmmu", 1, "3.4", 0),
    ("mmmu", 1, "seven halves", 1),
    ("mmmu", 1, "It is 4, so 3.5", 1), ("mmmu", 1, "", 0), ("mmmu", 1, "３．５", 0),  # full-width
    # SEED-Bench: the first character
    ("seedbench_image", 0, "A", 1), ("seedbench_image", 0, " a. One", 1), ("seedbench_image", 0, "Absent", 1),
    ("seedbench_image", 0, "(A)", 0), ("seedbench_image", 0, "", 0),
]  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_prompt_truth_and_type(load, name):
    sample = load(name)[0]
    assert (sample["prompt"], sample["GT"], sample.get("type")) == FIRST[name]


@pytest.mark.parametrize(("name", "number", "answer", "score"), SCORES)
def test_scores(load, name, number, answer, score):
    benchmark = load(name)
    assert benchmark.score(answer, benchmark[number]) == pytest.approx(score)


def test_scienceqa_asks_of_the_test_split_with_and_without_pictures(load):
    every = load("scienceqa")
    assert [(sample["index"], "image_path" in sample) for sample in every] == [("3", True), ("7", False)]
    assert every[1]["prompt"].startswith("Context: Use the map.\nWhich is east?\nA. x\n")
    assert [sample["index"] for sample in load("scienceqa_img")] == ["3"]


def test_mmbench_takes_a_picture_of_another_row_and_leaves_turned_copies_out(load):
    benchmark = load("mmbench_en")
    assert [sample["index"] for sample in benchmark] == [0, 2]
    assert benchmark[1]["image"].size == (28, 28)


def test_circular_questions_turn_their_options(load):
    benchmark = load("mmbench_en_circular")
    turns = [(sample["index"], list(sample["options"].values()), sample["GT"]) for sample in benchmark]
    assert turns == [
        (0, ["a red ball", "a cat", "a tree"], "B"),
        (1_000_000, ["a tree", "a red ball", "a cat"], "C"),
        (2_000_000, ["a cat", "a tree", "a red ball"], "A"),
        (2, ["exit", "enter"], "A"),
        (1_000_002, ["enter", "exit"], "B"),
    ]


def test_circular_accuracy_wants_every_turn(load):
    benchmark = load("mmbench_en_circular")
    found = benchmark.metrics(rows_of(benchmark, "B", "C", "A", "A", "A"))
    assert found == {"circular": 0.5, "vanilla": 1.0, "identity": 1.0, "ocr": 0.0}
    found = benchmark.metrics(rows_of(benchmark, "A", "C", "A", "A", "B"))
    assert found == {"circular": 0.5, "vanilla": 0.5, "identity": 0.0, "ocr": 1.0}


def test_ocrbench_counts(load):
    benchmark = load("ocrbench")
    found = benchmark.metrics(rows_of(benchmark, "centre", "no", "x^{2}+A"))
    assert (found["final_score"], found["Text Recognition"], found["Doc-oriented VQA"]) == (2.0, 1.0, 0.0)


def test_flickr_has_only_a_corpus_score(load):
    benchmark = load("flickr30k")
    assert [sample["index"] for sample in benchmark] == [1, 3]
    assert benchmark.score("A man rides a horse.", benchmark[0]) is None
    right = benchmark.metrics(rows_of(benchmark, "A man rides a horse.", "Two dogs play."))["CIDEr"]
    swapped = benchmark.metrics(rows_of(benchmark, "Two dogs play.", "A man rides a horse."))["CIDEr"]
    assert right > 4
    assert swapped == 0


def test_pope_numbers_of_each_split_and_their_means(load):
    benchmark = load("pope")
    found = benchmark.metrics(rows_of(benchmark, "yes", "yes", "yes", "no", "no", "no"))
    assert [found[f"random {key}"] for key in ("accuracy", "precision", "recall", "yes_ratio")] == [0.5, 0.5, 1.0, 1.0]
    assert [found[f"{split} f1"] for split in ("random", "popular", "adversarial")] == [pytest.approx(2 / 3), 1.0, 0.0]
    assert found["f1"] == pytest.approx((2 / 3 + 1) / 3)
    failed = rows_of(benchmark, "yes", "no")
    failed[0] |= {"answer": "", "score": 0.0, "error": "a fault"}
    assert benchmark.metrics(failed)["random accuracy"] == 0.5


@pytest.mark.parametrize(("name", "f1"), [("qwen", 5 / 9), ("lmms-eval", 4 / 7), ("vlmevalkit", 4 / 7)])
def test_pope_of_all_splits_together_is_what_two_harnesses_call_its_f1(load, name, f1):
    """Yes is said 4 times and true 3 times, with 2 hits; the F1 of the splits are 2/3, 1 and 0."""
    benchmark = copy(load("pope"))
    benchmark.use(protocols.load(name))
    rows = rows_of(benchmark, "yes", "yes", "yes", "no", "no", "yes")
    found = benchmark.metrics(rows)
    assert found["f1"] == pytest.approx(f1)
    assert found["random f1"] == pytest.approx(2 / 3)
    assert benchmark.from_sums(np.sum(list(benchmark.addends(rows).values()), axis=0)) == pytest.approx(f1)


def test_popes_recall_by_lmms_eval_misses_only_what_is_said_no_to(load):
    """1 hit, yes said twice, no said once; "yes." is neither. A sample that failed counts as missed."""
    benchmark = copy(load("pope"))
    benchmark.use(protocols.load("lmms-eval"))
    rows = rows_of(benchmark, "Yes", "No, it is not", "Yes.", "yes", "No", " no\n")
    failed = [*rows[:2], {**rows[2], "answer": "", "error": "a fault"}, *rows[3:]]
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    for some, numbers in ((rows, [1 / 3, 1 / 2, 1 / 2, 1 / 2, 1 / 2]), (failed, [1 / 3, 1 / 2, 1 / 3, 2 / 5, 1 / 2])):
        found = benchmark.metrics(some)
        assert [found[name] for name in names] == pytest.approx(numbers)
        sums = np.sum(list(benchmark.addends(some).values()), axis=0)
        assert benchmark.from_sums(sums) == pytest.approx(found["f1"])
    benchmark.use(protocols.load("vlmevalkit"))  # "yes." is yes there: 2 hits of 3, 3 times yes said
    assert [benchmark.metrics(rows)[name] for name in names] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2 / 3, 1 / 2])


def test_mme_adds_accuracy_and_accuracy_plus(load):
    benchmark = load("mme")
    assert len(benchmark) == 28
    # existence: both right, 100 + 100; count: one of two, 50 + 0; the others all wrong
    found = benchmark.metrics(rows_of(benchmark, "Yes", "No", "Yes", "Yes", *["maybe"] * 24))
    assert [found[key] for key in ("existence", "count", "position", "perception", "cognition", "total")] == [
        200.0, 50.0, 0.0, 250.0, 0.0, 250.0,
    ]  # fmt: skip
    truths = [sample["GT"] for sample in benchmark]
    found = benchmark.metrics(rows_of(benchmark, *truths))
    assert (found["perception"], found["cognition"], found["total"]) == (2000.0, 800.0, 2800.0)


def test_mmmu_places_each_picture_where_it_is_first_named(load):
    benchmark = load("mmmu")
    assert [image.getpixel((0, 0))[0] for image in benchmark[0]["image"]] == [2, 1]
    assert benchmark.metrics(rows_of(benchmark, "B", "4")) == {
        "Art and Design": 1.0, "Science": 0.0, "Art_Theory": 1.0, "Math": 0.0,
    }  # fmt: skip


def test_what_is_drawn_together_stays_together(load):
    """Twice the first question with all its turns, and twice the first picture with both its questions."""
    circular = load("mmbench_en_circular")
    rows = rows_of(circular, "B", "C", "B", "A", "B")
    assert [circular.unit(row) for row in rows] == [0, 0, 0, 2, 2]
    right, wrong = [{**row, "score": 1.0, "copy": 0} for row in rows[:3]], [{**row, "copy": 1} for row in rows[:3]]
    assert circular.metrics(right + wrong)["circular"] == 0.5
    mme = load("mme")
    rows = rows_of(mme, "Yes", "No", "Yes", "Yes")
    assert mme.unit(rows[0]) == mme.unit(rows[1]) != mme.unit(rows[2])
    again = [{**row, "copy": copy} for copy in (0, 1) for row in rows[:2]]
    assert mme.metrics(again)["existence"] == mme.metrics(rows[:2])["existence"] == 200.0
    half = [{**row, "copy": 0} for row in rows[:2]] + [{**row, "score": 0.0, "copy": 1} for row in rows[:2]]
    assert mme.metrics(half)["existence"] == 100.0
    assert load("pope").unit({"index": "random/1"}) == "random/1"
