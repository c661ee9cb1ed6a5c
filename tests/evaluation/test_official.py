"""Other harnesses' rules on recorded answers, and which rule a benchmark uses under a protocol."""

from __future__ import annotations

import json
from collections import Counter
from copy import copy
from pathlib import Path

import pytest

from ppe_npu.evaluation import metrics, protocols
from ppe_npu.evaluation.benchmarks.dataset import Choice
from ppe_npu.evaluation.metrics import official
from ppe_npu.evaluation.metrics.lmms import extracted_letter
from ppe_npu.evaluation.metrics.ptb import ptb_tokens
from ppe_npu.evaluation.results import score

RECORDED = json.loads(Path(__file__).with_name("official_scores.json").read_text(encoding="utf-8"))
GROUPS = dict.fromkeys((benchmark, source) for benchmark, source, *_ in RECORDED["answers"])


@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_recorded_answers_are_scored_as_their_source_scored_them(group):
    rule = official.rule(*group)
    cases = [case[2:] for case in RECORDED["answers"] if tuple(case[:2]) == group]
    differing = [case for case in cases if rule(*case[:3]) != case[3]]
    assert not differing


def test_recorded_captions_have_the_published_tokens():
    assert not [text for text, tokens in RECORDED["tokens"] if ptb_tokens(text) != tokens]


def test_every_source_is_described_and_every_protocols_rules_are_of_one():
    sources = {source for _, source in official.RULES}
    assert all(f'"{source}" (' in official.__doc__ for source in sources)
    assert {protocols.load(name).rules for name in protocols.names()} <= {None, *sources}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a man &amp; a dog", ["a", "man", "&", "a", "dog"]),
        ("1 &lt; 2 &gt; 0", ["1", "<", "2", ">", "0"]),
        ("&quot;hello&quot; &mdash; he said", ["hello", "he", "said"]),
        ("Tom&apos;s hat", ["tom", "'s", "hat"]),
        ("Inc.A. B", ["inc.", "a.", "b"]),
        ("it's y'all's", ["it", "'s", "y'", "all", "'s"]),
        ("(two) [men]", ["-lrb-", "two", "-rrb-", "-lsb-", "men", "-rsb-"]),
        ("don't cannot gonna 'twas", ["do", "n't", "can", "not", "gon", "na", "'t", "was"]),
        ("日本 \u0000 ok", ["日本", "ok"]),
        ("", []),
        (" . , ; : ! ? -- ... ", []),
    ],
)
def test_caption_tokens(text, tokens):
    assert metrics.caption_tokens(text) == tokens


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"), ("(B)(C)", "C"), ("<think>maybe B</think>C", "C"), ("The best option is (C) Both", "B"),
        ("E", ""), ("", ""), ("b", ""), ("A. or B. x", "A"), ("x C: y B) z", "C"), ("CAT", "A"), ("  '", ""),
        ("If answer is A, fine, but the answer is B, never A or so", "A"),
    ],
)  # fmt: skip
def test_the_letter_that_lmms_eval_extracts(answer, letter):
    assert extracted_letter(answer) == letter


@pytest.mark.parametrize(
    ("benchmark", "source", "answer", "right", "options", "expected"),
    [
        ("ai2d", "vlmevalkit", "The correct answer is B. It hatches.", "B", ["egg", "larva"], 1.0),
        ("scienceqa", "vlmevalkit", "It is steam", "B", ["ice", "steam"], 1.0),
        ("mmmu", "vlmevalkit", "the answer: F", "F", list("abcdef"), 1.0),
        ("mmstar", "vlmevalkit", "blue", "B", {"A": "red", "B": "blue"}, 1.0),
        ("seedbench_image", "vlmevalkit", "Bears", "B", ["One", "Two"], 0.0),
        ("mmbench", "lmms-eval", "B. because of all that can be seen in it", "B", {"A": "cat", "B": "dog"}, 1.0),
        ("mmbench", "lmms-eval", "A cat sits there", "A", {"A": "bird", "B": "dog"}, 0.0),  # an article, perhaps
        ("mmbench", "lmms-eval", "A dog sits there", "B", {"A": "bird", "B": "dog"}, 1.0),
        ("mmbench", "lmms-eval", "(A) or (B)", "A", {"A": "cat", "B": "dog"}, 0.0),
        ("mmbench", "lmms-eval", "The answer is: B).", "B", {"A": "cat", "B": "dog"}, 1.0),
        ("mmbench", "lmms-eval", "A or B, no: C.", "C", ["cat", "dog", "bird"], 1.0),  # a full stop before a comma
        ("mmbench", "lmms-eval", "", "A", {"A": "cat", "B": "dog"}, 0.0),
        ("mmstar", "lmms-eval", "The answer is (B).", "B", {"A": "red", "B": "blue"}, 1.0),  # MMStar's own: wrong
        ("mmstar", "lmms-eval", "b", "B", {"A": "red", "B": "blue"}, 0.0),  # MMStar's own: right
        ("mmstar", "lmms-eval", "Answer: B", "B", {"A": "red", "B": "blue"}, 1.0),
        ("realworldqa", "lmms-eval", "The answer is B, I think", "B", (), 1.0),
        ("realworldqa", "lmms-eval", "The answer is B, not A", "B", (), 0.0),  # a letter at the end takes precedence
        ("realworldqa", "lmms-eval", "b", "B", (), 0.0),
        ("realworldqa", "lmms-eval", "Left", "A", ["Left", "Right"], 0.0),  # texts of options do not count as letters
        ("realworldqa", "lmms-eval", " 3.. ", "3", (), 1.0),
        ("realworldqa", "lmms-eval", "Three", "3", (), 0.0),
        ("realworldqa", "lmms-eval", "downhill.", " Downhill ", (), 1.0),
        ("mmmu_open", "lmms-eval", "So it is 3.43 m", "3.43", (), 1.0),
        ("mmmu_open", "lmms-eval", "3.429", "['24/7', '3.429']", (), 0.0),  # a list is one text; MMMU's own: right
        ("mmmu_pro", "lmms-eval", "Answer: A or (J)", "J", list("abcdefghij"), 1.0),
        ("mmmu_pro", "lmms-eval", "?", "J", list("abcdefghij"), None),  # drawn
        ("mmmu_pro", "authors", "So. Answer: J", "J", list("abcdefghij"), 1.0),
        ("mmmu_pro_vision", "lmms-eval", "J", "J", list("abcdefghij"), 1.0),
        ("mmmu_pro_vision", "lmms-eval", "J.", "J", list("abcdefghij"), 0.0),  # the whole answer is the letter
        ("vqav2", "lmms-eval", "Blue.", ["blue"] * 10, (), 1.0),  # vqaEval leaves texts alone where all say the same
        ("vqav2", "lmms-eval", "a,b", ["a,b"] * 10, (), 1.0),  # both sides lose the comma, whatever annotators say
        ("vqav2", "lmms-eval", "it's", ["it's"] * 9 + ["its"], (), 1.0),
        ("vqav2", "lmms-eval", "the two", ["2"] * 3 + ["two"] * 7, (), 1.0),
        ("vqav2", "vlmevalkit", "5,,6", ["5  6"] * 10, (), 1.0),  # two commas do not belong to a number
    ],
)
def test_rules_of_others_on_hand_made_answers(benchmark, source, answer, right, options, expected):
    assert official.rule(benchmark, source)(answer, right, options) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("ai2d", "seedbench_image", "seedbench_2_plus", "mmstar", "scienceqa"),
        *("mlvu", "mvbench", "videomme", "videomme_subtitles"),
    ],
)
def test_vlmevalkit_reads_letters_behind_sentences_of_every_benchmark_with_options(load, name):
    benchmark = copy(load(name))
    benchmark.use(protocols.load("vlmevalkit"))
    sample = benchmark[0]
    assert score(benchmark, f"Look. The correct answer is {sample['GT']}.", sample) == 1.0
    assert score(benchmark, f"Look. The correct answer is {'A' if sample['GT'] == 'B' else 'B'}.", sample) == 0.0


@pytest.mark.parametrize("name", ["mlvu", "mvbench"])
def test_vlmevalkit_reads_the_texts_of_options_about_videos(load, name):
    benchmark = copy(load(name))
    sample = benchmark[0]
    texts = dict(zip("ABC", sample["options"]))
    assert score(benchmark, texts[sample["GT"]], sample) == 0.0  # by its authors' rule
    benchmark.use(protocols.load("vlmevalkit"))
    assert {letter: score(benchmark, text, sample) for letter, text in texts.items()} == {
        letter: float(letter == sample["GT"]) for letter in texts
    }


class Asked(Choice):
    """A benchmark without files."""

    name = "mmmu"
    folder, needs = ".", ()
    home = metric = ""
    form = "{question}"

    def read(self):
        return [{"index": 0}]

    def sample(self, row):
        return {"index": row["index"], "prompt": "?", "GT": "B", "options": ["a", "b", "c", "d"]}

    def letter(self, answer, sample):
        return "B"


def test_a_protocols_rule_goes_before_the_benchmarks_own(tmp_path):
    benchmark = Asked(tmp_path)
    assert score(benchmark, "A", benchmark[0]) == 1.0  # its own letter() says B to everything
    benchmark.use(protocols.load("qwen"))
    assert score(benchmark, " A ", benchmark[0]) == 0.0
    assert score(benchmark, "(B)", benchmark[0]) == 1.0


def test_answers_without_a_letter_are_wrong_or_drawn_by_the_protocols_seed(tmp_path):
    benchmark = Asked(tmp_path)
    benchmark.use(protocols.load("qwen"))
    assert score(benchmark, "?", benchmark[0]) == 0.0
    benchmark.draws = 7
    drawn = [score(benchmark, "?", {**benchmark[0], "index": index}) for index in range(2000)]
    again = [score(benchmark, "?", {**benchmark[0], "index": index}) for index in reversed(range(2000))]
    assert drawn == again[::-1]
    # 2000 draws of chance 1/4: 5 standard deviations are 97.
    assert abs(Counter(drawn)[1.0] - 500) < 97
    benchmark.draws = 8
    assert drawn != [score(benchmark, "?", {**benchmark[0], "index": index}) for index in range(2000)]
