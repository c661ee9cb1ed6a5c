"""olmOCR-Bench: facts that its own tests checked, cases by hand, malformed readings, and the means over files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from benchmark_writing import copy, lines, write_all
from tolerances import near

from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks
from ppe_npu.evaluation.metrics import near_text, page_facts
from ppe_npu.evaluation.metrics.cells import html_tables, markdown_tables
from ppe_npu.evaluation.metrics.near_text import _grown, near_places, ratio, shortened, stands_in
from ppe_npu.evaluation.metrics.page_facts import keeps

RECORDED = json.loads(Path(__file__).with_name("olmocr_facts.json").read_text(encoding="utf-8"))["cases"]
GRID = "<table><tr><th>Year</th><th colspan=2>Sum</th></tr><tr><td>2020</td><td>3</td><td>4</td></tr></table>"


@pytest.mark.parametrize("kind", ["present", "absent", "order", "table", "baseline", "math"])
def test_recorded_facts_are_kept_where_the_authors_tests_say_so(kind):
    cases = [case for case in RECORDED if case[1]["type"] == kind]
    assert {expected for _, _, expected in cases} == {True, False}
    assert [case for case in cases if keeps(*case[:2]) != case[2]] == []


@pytest.mark.parametrize(
    ("page", "fact", "kept"),
    [
        ("the **quick** fox — “jumps”", {"type": "present", "text": 'the quick fox - "jumps"'}, True),
        ("The fox", {"type": "present", "text": "the fox"}, False),
        ("The fox", {"type": "present", "text": "the fox", "case_sensitive": False}, True),
        ("the fax", {"type": "present", "text": "the fox", "max_diffs": 1}, True),
        ("see thefox", {"type": "present", "text": "the fox", "max_diffs": 1}, True),
        ("the fax", {"type": "present", "text": "tha fox", "max_diffs": 1}, False),
        (" ", {"type": "present", "text": "the fox"}, False),
        ("", {"type": "absent", "text": "the fox"}, True),
        ("12 text " * 9 + "7", {"type": "absent", "text": "7", "last_n": 5}, False),
        ("7 text " * 9, {"type": "absent", "text": "7", "last_n": 5}, True),
        ("one two three", {"type": "order", "before": "one", "after": "three"}, True),
        ("one two three", {"type": "order", "before": "three", "after": "one"}, False),
        ("one two one", {"type": "order", "before": "two", "after": "one"}, True),
        ("ome hundred, two hundred", {"type": "order", "before": "one hundred", "after": "two", "max_diffs": 1}, True),
        ("one two", {"type": "order", "before": "one", "after": "three"}, False),
        ("text", {"type": "baseline"}, True),
        ("... --", {"type": "baseline"}, False),
        ("x" + "ab" * 31, {"type": "baseline"}, False),
        ("x" + "ab" * 30, {"type": "baseline"}, True),
        ("中文", {"type": "baseline"}, False),
        ("中文", {"type": "baseline", "check_disallowed_characters": False}, True),
        ("![a picture](x.png) a", {"type": "baseline", "max_length": 1}, False),
        ("![a picture](x.png) a", {"type": "baseline", "max_length": 1, "max_length_skips_image_alt_tags": True}, True),
        (r"so \( x^2 \) and", {"type": "math", "math": "x^2"}, True),
        ("so $x^2$", {"type": "math", "math": "x^2", "ignore_dollar_delimited": True}, False),
        ("so x^2", {"type": "math", "math": "x^2"}, False),
        (GRID, {"type": "table", "cell": "3", "left": "2020", "right": "4", "top_heading": "Sum"}, True),
        (GRID, {"type": "table", "cell": "4", "up": "Sum"}, False),  # a wide cell has one place
        (GRID, {"type": "table", "cell": "3", "left_heading": "2021"}, False),
        (GRID, {"type": "table", "cell": "5"}, False),
        (GRID.replace("=2", "=two"), {"type": "table", "cell": "3"}, False),
        ("| Year | Sum |\n|---|---|\n| 2020 | 3 |", {"type": "table", "cell": "3", "top_heading": "Sum"}, True),
        ("| Year | Sum |\n|---|---|\n| 2020 | 3 |", {"type": "table", "cell": "3", "up": "Year"}, False),
        # Any cell above may be the heading if the first row shares no letter with the heading that is asked for.
        ("| Year | Total |\n| 1 | Sum |\n| 2 | 3 |", {"type": "table", "cell": "3", "top_heading": "Sum"}, True),
        ("| Year | Amount |\n| 1 | Sum |\n| 2 | 3 |", {"type": "table", "cell": "3", "top_heading": "Sum"}, False),
        ("| Year | Sum |\n|---|---|\n| 2020 | 3 |",
         {"type": "table", "cell": "3", "ignore_markdown_tables": True}, False),
    ],
)  # fmt: skip
def test_facts_by_hand(page, fact, kept):
    assert keeps(page, fact) is kept


def plain_ratio(first, second):
    """Similarity of two texts, from the whole table of common subsequences."""
    cells = np.zeros((len(first) + 1, len(second) + 1), int)
    for a, one in enumerate(first, 1):
        for b, other in enumerate(second, 1):
            cells[a, b] = cells[a - 1, b - 1] + 1 if one == other else max(cells[a - 1, b], cells[a, b - 1])
    return 2 * int(cells[-1, -1]) / (len(first) + len(second)) if first or second else 1.0


def test_parts_of_a_page_are_compared_as_if_one_by_one():
    draw = random.Random(0)
    for _ in range(120):
        one, other = ("".join(draw.choices("abc", k=draw.randrange(1, 12))) for _ in range(2))
        assert ratio(one, other) == near(plain_ratio(one, other), 8)
        short, long = sorted((one, other), key=len)
        width, least = len(short), draw.choice([0.5, 0.6, 0.75, 0.9])
        parts = [long[max(0, at) : at + width] for at in range(1 - width, len(long))]
        best = max(plain_ratio(short, part) for part in parts)
        if len(one) == len(other):
            best = max(best, *(plain_ratio(long, short[max(0, at) : at + width]) for at in range(1 - width, width)))
        if abs(best - least) > 1e-9:
            assert stands_in(one, other, least) is bool(best > least), (one, other, least)


def test_places_that_are_nearly_a_text():
    assert near_places("abc", "abcabc xabc", 0) == [0, 3, 8]
    assert near_places("hundred years", "a hundret years, hundred yers", 1) == [2, 17]
    assert near_places("hundred years", "a hundret yeers", 1) == []
    assert near_places("hundred years", "the hundred hundred years", 2) == [12]
    assert near_places("aaaa", "aaaaaa", 1) == [0]


@pytest.mark.parametrize("pattern", [".", "ab", "-+|"])
def test_a_page_that_repeats_itself_is_looked_at_once(pattern):
    """In a long row of dots, a piece of a shorter row is found everywhere, and all places but the last look alike."""
    _grown.cache_clear()
    page, text, most = pattern * 2000, pattern * 20, 6
    assert near_places(text, page, most)[0] == 0
    pieces, places = most + 1, len(pattern) + len(text) + most  # in one period, and near the page's ends
    assert _grown.cache_info().misses <= 2 * pieces * places


def test_tables_of_a_page():
    (table,) = html_tables(GRID)
    assert table.rows == [["Year", "Sum", ""], ["2020", "3", "4"]]
    assert (table.head_rows, table.head_columns) == ({0}, {0, 1, 2})
    assert ["Sum" in table.above[column] for column in range(3)] == [False, True, True]
    (table,) = html_tables("<table><tr><td rowspan=2>a<br>b</td><td>1</td></tr><tr><td>2</td></tr></table>")
    assert table.rows == [["a\nb", "1"], ["a\nb", "2"]]
    assert [table.rows for table in markdown_tables("a | b\n--|--\nc\n\n| d |\n| e |")] == [
        [["a", "b"]],
        [["d"], ["e"]],
    ]
    assert html_tables("<table>" * 3000) is None
    assert html_tables("<table><tr><td rowspan=99999999 colspan=9>x</table>") is None


@pytest.mark.parametrize("kind", ["present", "absent", "order", "table", "baseline", "math"])
@pytest.mark.parametrize(
    "page", ["", "\x00", "*" * 4000, "_a" * 2000, "|" * 4000, "|\n" * 2000, "<table><tr><td>" * 300, "ab" * 3000,
             "$" * 3001, r"\(" * 2000, "<td>" * 100 + "|x|\n|y|"], ids=range(11),
)  # fmt: skip
def test_readings_of_no_form_are_looked_at(kind, page):
    texts = dict.fromkeys(("text", "before", "after", "cell", "math", "up", "left_heading"), "abracadabra " * 12)
    assert keeps(page, {"type": kind, "max_diffs": 5, **texts}) in (True, False)


# -- the benchmark -----------------------------------------------------------------------------------------------------


def test_a_sample_is_a_page_with_its_tests(load):
    benchmark = load("olmocr_bench")
    assert [(sample["index"], len(sample["GT"])) for sample in benchmark] == [("tables/b.pdf_pg1", 3), ("a.pdf_pg1", 3)]
    picture = benchmark[1]["image"]
    assert (picture.size, picture.mode) == ((2048, 1024), "RGB")
    assert benchmark.score("The fox on page 7", benchmark[1]) == near(2 / 3, 8)
    assert benchmark.score("| Sum | 3 |\n| x | y |", benchmark[0]) == 1.0  # the formula does not count


def test_files_count_alike_and_formulas_stand_apart(load):
    benchmark = load("olmocr_bench")
    said = ["$x^2$", "The fox on page 7"]
    rows = [{"index": sample["index"], "GT": sample["GT"], "answer": one} for one, sample in zip(said, benchmark)]
    found = benchmark.metrics(rows)
    assert {name: found[name] for name in ("baseline", "headers_footers", "table_tests")} == {
        "baseline": 1.0, "headers_footers": 0.5, "table_tests": 0.0,
    }  # fmt: skip
    assert found["overall"] == 0.5
    assert (found["math, same characters"], found["kind absent"], found["kind present"]) == (1.0, 0.0, 1.0)
    assert "arxiv_math" not in found
    sums = np.array(list(benchmark.addends(rows).values()))
    assert benchmark.from_sums(sums.sum(0)) == found["overall"]
    failed = [{**row, "answer": "", "error": "OutOfMemoryError"} for row in rows]
    assert set(benchmark.metrics(failed).values()) == {0.0}  # nothing is absent from what was not read


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"type": "footnote"}, r"test 1 has no known type"),
        ({"text": " "}, "test 1 has no text under 'text'"),
        ({"page": 0}, "page 0, which is not an integer of at least 1"),
        ({"max_diffs": "1"}, "max_diffs '1'"),
        ({"max_length": "a" * 4_096}, r"max_length 'a+\.\.\.a+', which is not an integer of at least 0"),
        ({"first_n": True}, "first_n True, which is not an integer of at least 0"),
        ({"max_repeats": 2.5}, r"max_repeats 2\.5"),
        ({"left_heading": ["Year"]}, r"left_heading \['Year'\], which is not a string"),
        ({"pdf": "c.pdf"}, r"missing below .*: bench_data/pdfs/c\.pdf; get it from"),
        ({"pdf": "../../../a.pdf"}, "lies outside of"),
    ],
)
def test_tests_that_cannot_be_run_are_named_at_once(tmp_path, changed, word):
    root = copy(write_all(tmp_path / "whole", "olmocr_bench"), tmp_path / "changed")
    row = {"pdf": "a.pdf", "page": 1, "id": "x", "type": "present", "text": "fox", "max_diffs": 0, **changed}
    lines(root / "olmocr_bench" / "bench_data" / "headers_footers.jsonl", [row])
    with pytest.raises(InputError, match=word):
        benchmarks.load("olmocr_bench", root)


def _repeating(draw: random.Random) -> tuple[list[str], str, int]:
    """(two texts, a page in which something may repeat, the most edits)."""

    def word() -> str:
        return "".join(draw.choice("ab. ") for _ in range(draw.randint(1, 5)))

    unit, texts = word()[: draw.randint(1, 3)], []
    for _ in range(2):
        forms = [word() + unit * draw.randint(0, 4) + word(), word() + word(), unit * draw.randint(1, 5)]
        text = draw.choice(forms)
        texts.append(text if text.strip() else "a")
    parts = [[word() * 2, unit * draw.randint(20, 120), word() + texts[0], texts[1]] for _ in range(4)]
    return texts, "".join(draw.choice(part) for part in parts), draw.choice([0, 0, 1, 2, 3])


def test_what_is_repeated_without_end_is_read_as_if_it_ended_sooner(monkeypatch):
    """A row of a million dots matches dots in a million places; only a few are looked at, and no result changes."""
    draw, kept = random.Random(7), []
    for _ in range(120):
        texts, page, most = _repeating(draw)
        fact = {"type": "order", "before": texts[0], "after": texts[1], "max_diffs": most}
        kept.append((keeps(page, fact), stands_in(texts[0], page, 0.7)))
        with monkeypatch.context() as whole:
            for module in (near_text, page_facts):
                whole.setattr(module, "shortened", lambda page, ends: page)
            expected = keeps(page, fact), stands_in(texts[0], page, 0.7)
        assert kept[-1] == expected, (texts, page, most)
    assert {order for order, _ in kept} == {alike for _, alike in kept} == {True, False}


@pytest.mark.parametrize("unit", [".", ". ", "ab ", "abcdefgh"])
def test_a_page_of_repetitions_is_as_short_as_its_ends(unit):
    page = f"1. Introduction {unit * 50_000} 17"
    short = shortened(page, 100)
    assert len(short) < 2 * 100 + 3 * len(unit) + 20
    assert (short[:60], short[-60:]) == (page[:60], page[-60:])
    assert shortened("a page of words, each another one " * 3, 100) == "a page of words, each another one " * 3
