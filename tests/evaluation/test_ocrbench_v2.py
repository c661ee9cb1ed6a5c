"""OCRBench v2: answers scored by its own scripts, cases by hand, malformed answers, and the means of abilities."""

from __future__ import annotations

import configparser
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_writing import write_all
from tolerances import near

from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks
from ppe_npu.evaluation.benchmarks.ocrbench_v2 import OCRBenchV2, OCRBenchV2Chinese, check_boxes
from ppe_npu.evaluation.metrics.edits import Node, levenshtein, tree_distance
from ppe_npu.evaluation.metrics.ocrbench_v2 import HANDWRITING, READINGS, RULES, ocrbench_v2_score
from ppe_npu.evaluation.metrics.reading import Reader
from ppe_npu.evaluation.metrics.teds import page_of, teds

RECORDED = json.loads(Path(__file__).with_name("ocrbench_v2_scores.json").read_text(encoding="utf-8"))
KINDS = [*RULES, *READINGS, HANDWRITING]


class NoSynonyms:
    def synsets(self, word):
        return []


@pytest.fixture(scope="module")
def reader():
    return Reader(NoSynonyms(), RECORDED["words"].__getitem__)


def scored(reader, kind, answer, truths, question="", **more):
    sample = {"type": kind, "prompt": question, "GT": truths, "eval": None, "bbox": None, "boxes": None, **more}
    return ocrbench_v2_score(answer, sample, reader)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_answers_are_scored_as_the_authors_script_scored_them(reader, kind):
    cases = [case[1:] for case in RECORDED["cases"] if case[0] == kind]
    assert len(cases) > 3
    for question, truths, more, answer, expected in cases:
        more = {{"ev": "eval"}.get(name, name): value for name, value in more.items()}
        truths = more.pop("content", truths)
        assert scored(reader, kind, answer, truths, question, **more) == near(expected, 64), answer


@pytest.mark.parametrize(
    ("kind", "answer", "truths", "more", "expected"),
    [
        ("text recognition en", "It says: STOP\nhere", ["stop here"], {}, 1),
        ("text recognition en", "stop", ["Stop"], {"eval": "case sensitive"}, 0),
        ("science QA en", "(A)", ["A"], {"eval": "multiple choice"}, 1),
        ("science QA en", "A. red", ["A"], {"eval": "multiple choice"}, 0),
        ("diagram QA en", "one two three four six", ["one two three four five"], {}, 1 - 3 / 23),
        ("cognition VQA cn", "北京 饭店", ["北京饭店"], {}, 1),
        ("cognition VQA cn", "甲,乙,丙", ["甲,乙,丙,丁"], {}, 1 - 2 / 7),
        ("text counting en", "12 of them", ["10"], {"eval": "regression"}, 0.8),
        ("text counting en", "15", ["10"], {"eval": "regression"}, 0),
        ("text counting en", "0", ["1"], {"eval": "regression"}, 0),
        ("text counting en", "0", ["0"], {"eval": "regression"}, 1),
        ("text counting en", "1", ["0"], {"eval": "regression"}, 0),
        ("text counting en", "9" * 5000, ["10"], {"eval": "regression"}, 0),
        ("text counting en", "there are 10", ["10"], {"eval": "exact match"}, 1),
        ("formula recognition cn", r"\frac{面积}{2} = 3", [r"\frac {\text{面积}} {2}"], {}, 1),
        ("text grounding en", "(0,0,1,1), then [0, 0, 10, 10]", ["0", "0", "10", "20"], {}, 0.5),
        ("text grounding en", "[0, 0, 10, 2000]", ["0", "0", "10", "20"], {}, 0),
        ("VQA with position en", '{"answer": "yes", "bbox": [0, 0, 10, 10]}', ["Yes"], {"bbox": [0, 0, 10, 20]}, 0.75),
        ("VQA with position en", '{"answer": "yes", "bbox": [0, 0, 10, 10]}', ["Yes"], {"bbox": []}, 0.5),
        ("VQA with position en", '{"answer": "yes", "bbox": [0, 0, 9, 9]}', ["Yes"], {"bbox": [5, 5, 5, 5]}, 0.5),
        ("text grounding en", "(1, 2, 3, 4)", [], {}, 0),
        ("text grounding en", "(1, 2, 1, 2)", ["1", "2", "1", "2"], {}, 0),
        ("VQA with position en", '{"answer": "yes", "bbox": "none"}', ["Yes"], {"bbox": [0, 0, 10, 20]}, 0.5),
        ("key information extraction en", "company: Ford\ntotal: 3", ['{"company": ["Ford Inc", "ford"], "date": "1"}'],
         {}, 1 / 3),
        ("key information extraction cn", "{'名': '王', '数': 3}", ["{'名': '王', '数': ['3', '三']}"], {}, 1),
        ("chart parsing en", "data = {'a': 1}  # so", ['{"a": 1}'], {}, 1),
        ("document parsing en", "# One\ntext", ["# Two\nother"], {}, 1),
        ("document parsing en", "# One\n\ntext", ["# One\n\ntext"], {}, 1 - 1 / 5),
        ("full-page OCR en", "a b c d e", ["a b c d e"], {}, (1 + 1 + 1 + 1 - 0.5 / 5**3) / 4),
        ("full-page OCR cn", "   ", ["abc"], {}, 0),
        ("handwritten answer extraction cn", "选 A、C", ["AC"], {}, 1),
    ],
)  # fmt: skip
def test_answers_by_hand(reader, kind, answer, truths, more, expected):
    assert scored(reader, kind, answer, truths, **more) == near(expected, 8)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("<table><tr><td>ab</td><td>c</td></tr></table>", 1),
        ("<table><tr><td>ab<td>c", 1),  # what is left open is closed
        ("<table><tr><td>ax</td><td>c</td></tr></table>", 1 - 0.5 / 3),
        ("<table><tr><th>ab</th><td>c</td></tr></table>", 1 - 1 / 3),
        ("<table><tr><td colspan=2>ab</td><td>c</td></tr></table>", 1 - 1 / 3),
        ("<table><tr><td colspan=two>ab</td><td>c</td></tr></table>", 0),
        ("<table><tr><td>ab</td><td><b>c</b></td></tr></table>", 1 - (2 / 3) / 4),
        ("<table><tr><td>ab<table><tr></td><td>c</td></tr></table></td></tr></table>", 29 / 45),  # no cell ends there
        ("<table></table>", 0),
        ("<table>" * 3000, 0),
    ],
)
def test_tables_by_hand(said, expected):
    assert teds(page_of(said), page_of("<table><tr><td>ab</td><td>c</td></tr></table>")) == near(expected, 8)


def test_a_table_that_is_asked_for_in_markdown(reader):
    right = "| a | b |\n| --- | --- |\n| 1 | 2 |"
    asked = {"question": "Give the table in Markdown."}
    assert scored(reader, "table parsing en", right, [right], **asked) == 1.0
    assert scored(reader, "table parsing en", right.replace("2", "3"), [right], **asked) == near(1 - 1 / 6, 8)
    assert scored(reader, "table parsing en", "| a |", [right], **asked) < 0.5
    assert scored(reader, "table parsing cn", "| a |", ["<table></table>"], **asked) == 0.0


def test_words_and_their_boxes(reader):
    def score(answer, texts=("Hi!", "###", "no")):
        boxes = [[0, 0, 10, 0, 10, 10, 0, 10], [20, 0, 30, 0, 30, 10, 20, 10], [40, 0, 50, 0, 50, 10, 40, 10]]
        return scored(reader, "text spotting en", answer, list(texts), boxes=boxes)

    assert score("[(0,0,10,10,'hi'), (40,0,50,10,'no')]") == 1.0
    assert score("[(0,0,10,10,'hi'), (20,0,30,10,'what'), (40,0,50,10,'no')]") == 1.0  # "###" marks what is illegible
    assert score("(0,0,10,10,hi) and (0,0,10,10,hi)") == near(2 / 3, 8)  # the same word twice counts once
    assert score("[(0,0,10,10,'ho'), (0,1,10,10,'hi')]") == 0.0  # the first that overlaps counts
    twice = scored(reader, "text spotting en", "[(0,0,9,9,'hi')]", ["hi", "hi"], boxes=[[0, 0, 9, 9]] * 2)
    assert twice == near(2 / 3, 8)  # a word that is said once is found once
    assert score("[(0,0,4,10,'hi')]") == score("[(10,0,0,10,'hi')]") == score("[(0,0,10,1001,'hi')]") == 0.0
    assert score("{}") == score("7") == score("") == 0.0
    assert score("[(0,0,10,10,'x')]", ("###", "###", "###")) == 0.0


@pytest.mark.half
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "answer",
    ["", " ", "nan", "{" * 3000, "[" * 3000, "(1,2" * 900, "\n" * 3000, "a: " * 1500, "1" * 5000, "<table><td" * 500,
     "```\n" * 800, "\x00", "{1: 2}", "[" + " " * 4000, "'" * 3001, "-" * 4000 + "1", "{'answer': None, 'bbox': {}}"],
    ids=range(17),
)  # fmt: skip
def test_answers_of_no_form_are_scored(kind, answer):
    reader = Reader(NoSynonyms(), list)
    truths = {"chart parsing en": ["{}"], "text grounding en": list("1234"), "text counting en": ["4"]}.get(kind, ["x"])
    more = {"eval": "regression", "bbox": [1, 2, 3, 4], "boxes": [[1, 2, 3, 2, 3, 4, 1, 4]]}
    assert 0.0 <= scored(reader, kind, answer, truths, "html", **more) <= 1.0


def plain_distance(first, second):
    """Edit distance from the whole table, cell by cell."""
    cells = np.zeros((len(first) + 1, len(second) + 1), int)
    cells[:, 0], cells[0] = range(len(first) + 1), range(len(second) + 1)
    for a, one in enumerate(first, 1):
        for b, other in enumerate(second, 1):
            cells[a, b] = min(cells[a - 1, b] + 1, cells[a, b - 1] + 1, cells[a - 1, b - 1] + (one != other))
    return cells[-1, -1]


def test_edits_of_sequences_are_those_of_the_whole_table():
    draw = random.Random(0)
    for _ in range(150):
        one, other = ("".join(draw.choices("abé", k=draw.randrange(14))) for _ in range(2))
        assert levenshtein(one, other) == levenshtein(list(other), list(one)) == plain_distance(one, other)


def test_distances_of_trees():
    def tree(text):
        """The root node of a tree written like "a(b c(d))"."""
        top = Node("")
        open_, node = [top], top
        for sign in text:
            if sign == "(":
                open_.append(node)
            elif sign == ")":
                open_.pop()
            elif sign != " ":
                node = open_[-1].add(sign)
        return top.children[0]

    def distance(one, other):
        return tree_distance(tree(one), tree(other), lambda a, b: 0.0 if a == b else 0.75)

    assert distance("a(b c)", "a(b c)") == 0
    assert distance("a(b c)", "a(x(b c))") == 1  # inserted above both
    assert distance("a(b c)", "a(c b)") == 1.5  # order counts
    assert distance("a(b(d) c)", "a(b c(d))") == 2
    assert distance("f(d(a c(b)) e)", "f(c(d(a b)) e)") == 2  # Zhang and Shasha's own example
    assert distance("a", "b(c)") == 1.75


# -- the benchmark -----------------------------------------------------------------------------------------------------


def load(kind, tmp_path):
    return kind(write_all(tmp_path, "ocrbench_v2_en"), Reader(NoSynonyms(), list))


def test_the_two_languages_share_a_folder(tmp_path):
    english, chinese = load(OCRBenchV2, tmp_path), load(OCRBenchV2Chinese, tmp_path)
    assert [sample["index"] for sample in english] == [0, 1, 2]
    assert [sample["index"] for sample in chinese] == [3, 4, 5]
    assert english[0]["prompt"] == "What is written?"
    assert english[1]["GT"] == ["one", "two"]
    assert english[2]["image"].size == (28, 28)
    assert english.score("(0, 0, 100, 50, one)", english[1]) == near(2 / 3, 8)


def test_abilities_count_alike_and_a_translation_of_nothing_does_not(tmp_path):
    benchmark = load(OCRBenchV2Chinese, tmp_path)
    rows = [{**{key: sample[key] for key in ("index", "type", "GT")}, "score": score}
            for sample, score in zip(benchmark, (1.0, 0.0, 0.5))]  # fmt: skip
    found = benchmark.metrics(rows)
    assert found["overall"] == 0.75
    assert (found["visual_text_understanding"], found["full-page OCR cn"]) == (1.0, 0.5)
    assert "knowledge_reasoning" not in found
    sums = np.array(list(benchmark.addends(rows).values()))
    assert benchmark.from_sums(sums.sum(0)) == found["overall"]
    assert benchmark.from_sums(np.stack([sums[:1].sum(0), sums[1:2].sum(0)])).tolist() == [1.0, 0.0]


def test_every_kind_has_a_rule_and_an_ability():
    named = {f"{kind} {cls.language}" for cls in (OCRBenchV2, OCRBenchV2Chinese) for kinds in cls.abilities.values()
             for kind in kinds}  # fmt: skip
    assert named == set(KINDS)
    assert len(named) == 30


def test_what_readings_need_is_named_before_anything_runs(tmp_path, monkeypatch):
    def missing():
        raise LookupError("Resource wordnet not found")

    monkeypatch.setattr("nltk.corpus.wordnet", SimpleNamespace(ensure_loaded=missing))
    with pytest.raises(
        InputError, match=r"METEOR needs NLTK data that is not installed: run python -m nltk.downloader"
    ):
        benchmarks.load("ocrbench_v2_en", write_all(tmp_path, "ocrbench_v2_en"))


def test_what_cuts_chinese_words_is_named_with_the_extra_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr("nltk.corpus.wordnet", SimpleNamespace(ensure_loaded=lambda: None))
    monkeypatch.setitem(sys.modules, "jieba", None)
    remedy = r'scoring a Chinese transcription needs jieba, which is not installed: pip install ".+\[chinese\]"$'
    with pytest.raises(InputError, match=remedy):
        benchmarks.load("ocrbench_v2_cn", write_all(tmp_path, "ocrbench_v2_cn"))
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    assert "jieba" in setup["options.extras_require"]["chinese"]


def test_a_kind_without_a_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(OCRBenchV2, "abilities", {"text_spotting": ("text spotting",)})
    with pytest.raises(InputError, match="unknown type text grounding en, text recognition en below"):
        load(OCRBenchV2, tmp_path)


@pytest.mark.parametrize("box", [[], [1, 2], [1, 2, 3, 4, 5]])
def test_a_box_without_corners_is_named_at_once(box):
    rows = [{"type": "text spotting en", "id": 7, "bbox_list": [[1, 2, 3, 4], box]}]
    with pytest.raises(InputError, match="ocrbench_v2_en: row 7 has a box in bbox_list without corners"):
        check_boxes("ocrbench_v2_en", rows)
