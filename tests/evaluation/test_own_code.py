"""A benchmark whose code was changed scores the stored answers anew; one whose code raises is told where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stand_in import Counting, Instant

from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks, facts
from ppe_npu.evaluation.own_code import code_mark
from ppe_npu.evaluation.runner import Evaluation

KEY = """
class Key:
    modality = "text"
    def __len__(self): return 4
    def __getitem__(self, number):
        return {{"index": number, "prompt": f"{{number}} + 1?", "GT": str(number + 1)}}
    def score(self, answer, sample):
        return {score}
{more}"""
METRIC = "    headline = 'share'\n    def metrics(self, rows):\n        return {share}\n"


class Asked(Instant):
    """Instant, which counts the samples that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def answer(self, prepared):
        self.count += len(prepared)
        return super().answer(prepared)


@pytest.fixture
def key(tmp_path):
    """key(score) -> the benchmark of a user's file in which score() returns this expression."""

    def load(score: str, more: str = "", name: str = "key.py"):
        (tmp_path / name).write_text(KEY.format(score=score, more=more))
        return benchmarks.load(f"{tmp_path / name}:Key", tmp_path)

    return load


@pytest.fixture
def go(tmp_path):
    """go(benchmark) -> (results, number of samples asked)."""

    def evaluate(benchmark):
        answers = Asked()
        with Evaluation(answers, benchmark, tmp_path / "out", 4, bar=False) as evaluation:
            return evaluation.run(), answers.count

    return evaluate


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


# -- scored anew -------------------------------------------------------------------------------------------------------


def test_a_changed_score_scores_the_stored_answers_anew_and_says_so_once(tmp_path, key, go, capsys):
    results, asked = go(key("1.0"))
    assert (results["accuracy"]["accuracy"], asked) == (1.0, 4)
    settings = (tmp_path / "out" / "settings.json").read_text()
    changed, asked = go(key("0.25"))
    assert (changed["accuracy"]["accuracy"], changed["types"]["None"]["accuracy"], asked) == (0.25, 0.25, 0)
    assert [row["score"] for row in rows(tmp_path / "out")] == [0.25] * 4
    assert (tmp_path / "out" / "settings.json").read_text() == settings
    said = "Key, dense: the benchmark's code has changed: 4 stored answers were scored anew (4 scores differ)"
    assert capsys.readouterr().err.splitlines() == [f"ppe-npu: {said}"]
    assert go(key("0.25"))[0] == changed
    assert capsys.readouterr().err == ""


def test_the_same_code_scores_nothing_anew(key, go, tmp_path):
    """A rule may be slow or may cost money: without a change it is not asked twice."""
    again = "len(open('{}', 'a').write('x') * [0]) and 1.0".format(tmp_path / "calls")
    go(key(again))
    go(key(again))
    assert len((tmp_path / "calls").read_text()) == 4


def test_code_that_changed_elsewhere_in_the_file_counts(key, go):
    go(key("limit", more="limit = 1.0\n"))
    assert go(key("limit", more="limit = 0.5\n"))[0]["accuracy"]["accuracy"] == 0.5


def test_a_module_of_the_users_that_the_file_imports_counts(key, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rule_of_mine.py").write_text("def rule(): return 1.0\n")
    before = code_mark(key("rule()", more="from rule_of_mine import rule\n"))
    assert code_mark(key("rule()", more="from rule_of_mine import rule\n")) == before
    (tmp_path / "rule_of_mine.py").write_text("def rule(): return 0.5\n")
    assert code_mark(key("rule()", more="from rule_of_mine import rule\n")) != before


def test_a_class_without_a_file_is_known_by_its_code():
    """As in a notebook, where the source may not be found."""

    def made(text: str):
        space = {"__name__": "of_no_module"}
        exec(text, space)
        return space["Key"]()

    texts = [KEY.format(score=score, more="") for score in ("answer in {'1', '2'}", "answer in {'1', '3'}")]
    assert code_mark(made(texts[0])) == code_mark(made(texts[0])) != code_mark(made(texts[1]))


def test_benchmarks_of_the_package_have_no_mark(load):
    """Their scoring has an edition, so their runs are as they were."""
    assert code_mark(load("pope")) is None


def test_answers_that_an_earlier_edition_stored_are_scored_anew_without_a_word_if_nothing_differs(
    tmp_path, key, go, capsys
):
    """It did not record the code; nor does a copy of the three files that a user may look at."""
    benchmark, work = key("1.0"), tmp_path / "out" / ".work" / "claims.jsonl"
    first = go(benchmark)[0]
    stored = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    work.write_text('{"worker": "one"}\n')
    assert go(benchmark) == (first, 0)
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == stored
    assert capsys.readouterr().err == ""
    work.unlink()
    assert go(key("0.5"))[0]["accuracy"]["accuracy"] == 0.5
    assert "4 stored answers were scored anew (4 scores differ)" in capsys.readouterr().err


def test_answers_that_failed_to_be_scored_are_kept_and_scored_when_the_code_is_mended(tmp_path, key, go):
    results, _ = go(key("1 / 0"))
    assert results["errors"] == 4
    assert [row["answer"] for row in rows(tmp_path / "out")] == ["1", "2", "3", "4"]
    mended, asked = go(key("1.0"))
    assert (mended["errors"], mended["accuracy"]["accuracy"], mended["costs"]["new_tokens"], asked) == (0, 1.0, 1.0, 0)
    assert not any("error" in row for row in rows(tmp_path / "out"))


def test_code_that_fails_on_stored_answers_loses_none(tmp_path, key, go):
    go(key("1.0"))
    broken, asked = go(key("1 / sample['index']"))
    assert (broken["errors"], asked) == (1, 0)
    assert [row["answer"] for row in rows(tmp_path / "out")] == ["1", "2", "3", "4"]


def test_a_process_with_other_code_does_not_join_one_that_works(tmp_path, key):
    with Evaluation(Instant(), key("1.0"), tmp_path / "out", 4, bar=False):
        with Evaluation(Instant(), key("1.0"), tmp_path / "out", 4, bar=False):
            pass
        reason = "another process works on this run with other code of the benchmark: wait until it ends, or choose"
        with (
            pytest.raises(InputError, match=rf"out: {reason} another output"),
            Evaluation(Instant(), key("0.5"), tmp_path / "out", 4, bar=False),
        ):
            pass


def test_a_report_says_that_its_runs_were_scored_by_different_code(key, go):
    old, new = go(key("1.0"))[0], go(key("0.5"))[0]
    assert old["scored_by"] != new["scored_by"]
    found = {"samples": 4, "units": None, "score": "accuracy", "types": [], "rows": [], "missing": []}
    said = facts.sentence("Key", found, [{**old, "name": "ppe"}, new], "checkpoint")
    assert "The benchmark's code changed between its runs, so their scores do not compare: run all again." in said
    assert "changed" not in facts.sentence("Key", found, [new, {**old, "scored_by": None}], "checkpoint")


# -- told where --------------------------------------------------------------------------------------------------------


def test_what_a_users_code_raises_is_told_with_its_method_its_file_and_its_line(tmp_path, key, go):
    results, _ = go(key("1 / 0", more=METRIC.format(share="{}['share']")))
    assert {row["error"] for row in rows(tmp_path / "out")} == {
        "score() of Key failed at key.py:8: ZeroDivisionError: division by zero"
    }
    assert results["metrics_error"] == "metrics() of Key failed at key.py:11: KeyError: 'share'"


def test_the_line_is_the_users_where_a_library_raises(tmp_path, key, go):
    go(key("float(__import__('json').loads(answer + '['))"))
    assert "score() of Key failed at key.py:8: JSONDecodeError: " in rows(tmp_path / "out")[0]["error"]


def test_a_method_of_another_form_is_told_without_a_line_of_ours(tmp_path, go):
    class Key(Counting):
        name = "Key"

        def score(self):
            return 1.0

    go(Key(1))
    (row,) = rows(tmp_path / "out")
    assert row["error"].startswith("score() of Key failed: TypeError: ")
    assert "takes 1 positional argument but 3 were given" in row["error"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("'left'", "score() of Key returned 'left', not a number: return one in [0, 1], or None"),
        ("[1, 2]", "score() of Key returned [1, 2], not a number: return one in [0, 1], or None"),
        ("7", "score() of Key returned 7: return a number in [0, 1], or None"),
        ("float('nan')", "score() of Key returned nan: return a number in [0, 1], or None"),
    ],
)
def test_a_score_that_is_no_number_is_named(tmp_path, key, go, given, said):
    go(key(given))
    assert rows(tmp_path / "out")[0]["error"] == said


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("__len__(self): return 1 / 0", "benchmark {} has no length (key.py:9): ZeroDivisionError: division"),
        (
            "__getitem__(self, n): return 1 / 0",
            "benchmark {} fails for its first 4 samples (key.py:9): ZeroDivisionError",
        ),
        ("__init__(self): 1 / 0", "benchmark {} cannot be constructed (key.py:9): ZeroDivisionError: division"),
    ],
)
def test_a_benchmark_that_cannot_be_loaded_says_where(tmp_path, key, method, said):
    with pytest.raises(InputError) as caught:
        key("1.0", more=f"    def {method}\n")
    assert said.format(f"{tmp_path}/key.py:Key") in str(caught.value)


def test_a_file_that_cannot_be_imported_says_where(tmp_path, key):
    with pytest.raises(
        InputError, match=r"key\.py cannot be imported \(key\.py:9\): ZeroDivisionError: division by zero"
    ):
        key("1.0", more="1 / 0\n")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("unit(self, row): return 1 / 0", "unit() of Key failed at key.py:12: ZeroDivisionError: division by zero"),
        ("unit(self, row): return [1]", "unit() of Key returned [1]: return a str, a number or a tuple of them"),
    ],
)
def test_a_unit_that_fails_is_told(key, go, method, said):
    results, _ = go(key("1.0", more=METRIC.format(share="{'share': 1.0}") + f"    def {method}\n"))
    assert results["metrics_error"] == said


def test_metrics_that_are_no_numbers_are_named(key, go):
    results, _ = go(key("1.0", more=METRIC.format(share="{'share': 'much'}")))
    assert results["metrics_error"] == "metrics() of Key returned 'share': 'much': return names and finite numbers"


def test_rows_of_a_part_of_a_run_without_a_record_of_the_code_are_kept(tmp_path, key, go):
    """A folder that an earlier edition left unfinished."""
    benchmark = key("1.0")
    go(benchmark)
    stored = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    (tmp_path / "out" / "predictions.jsonl").write_bytes(b"".join(stored.splitlines(keepends=True)[:2]))
    (tmp_path / "out" / ".work" / "claims.jsonl").unlink()
    results, asked = go(benchmark)
    assert (results["accuracy"]["accuracy"], results["samples"], asked) == (1.0, 4, 2)
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes().startswith(b"".join(stored.splitlines(True)[:2]))


def test_two_files_of_one_name_are_told_apart(tmp_path, key):
    (tmp_path / "other").mkdir()
    one = key("1.0")
    mark = code_mark(one)
    key("1.0", more="limit = 1\n", name="other/key.py")
    assert code_mark(one) == mark
