"""Edited results, costs and predictions: a report, or one line that names the file."""

from __future__ import annotations

import copy
import json
import os
import random

import pytest
from report_runs import write_run

from ppe_npu.errors import InputError
from ppe_npu.evaluation import report
from ppe_npu.evaluation.report import collect, unfinished, write_report
from ppe_npu.files import write_json

EVIL = "<script>alert(1)</script>"
JUNK = [
    *(None, True, 0, -1, 0.5, 7, float("nan"), float("inf"), 10**30, "", "x", EVIL, "a\x1b[31m", "\ud800", "9" * 3000),
    *([], [1], ["x"], {}, {"a": 1}, {"name": 5}, {"a": {"b": None}}),
]
MORE = {
    "tuned": None,
    "ignored": {"top_k": 5},
    "units": 4,
    "metrics": {"a": 0.5},
    "headline": {"name": "a", "value": 0.5, "replicates": [0.1, 0.5, 0.6]},
    "scale": {"maximum": 1.0, "factor": 100.0, "decimals": 1},
}

TIME = {"median": 0.5, "quartiles": [0.4, 0.6], "ratio": 0.5, "low": 0.4, "high": 0.6, "scatter": 0.1, "told": True}
WORK = dict.fromkeys(("tower_flops", "decoder_flops", "tower_bytes", "decoder_bytes", "kv_bytes"), 1e9)
COST = {"ttft": TIME, "total": TIME, "new_tokens": 2.0, "counted": WORK}
COSTS = {
    "rounds": 5, "prompts": 8, "reference": "dense", "rows": {"dense": COST, "ppe 0.45": COST}, "ratios_of": "time",
    "device": "cpu", "dtype": "fp32", "protocol": "qwen (fps 2)",
}  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder with dense and another run; pictures of reports are not drawn."""
    monkeypatch.setattr(report, "draw", lambda comparison, path, title: path)
    for name, ratio in (("dense", 1.0), ("ppe", 0.45)):
        folder = tmp_path / "b" / name
        result = write_run(folder, [1.0, 0.0, 1.0, float(name == "dense")], name, ratio, **MORE)
        settings = {**result["settings"], "protocol": {"name": "qwen", "changed": {"fps": 2}}, "generation": {"k": 1}}
        write_json(folder / "results.json", {**result, "settings": settings})
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        write_rows(folder, [{**row, "prompt": "q", "GT": "a", "answer": f"{name} a"} for row in rows])
    write_json(tmp_path / "b" / "costs.json", COSTS)
    return tmp_path


def write_rows(folder, rows) -> None:
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def leaves(value, path=()):
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from leaves(value[key], (*path, key))


def changed(value, path, new):
    """A copy with another value at a path, or without it (new is ...)."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


def check(runs) -> bool:
    """Checks the law; returns whether there is a report."""
    try:
        write_report(collect(runs), runs / "report.md", "Title", (), unfinished(runs), html=True)
    except InputError as error:
        said = str(error)
    else:
        said = None
    if said is not None:
        assert str(runs / "b") in said
        assert len(said) < 1000
        assert "\n" not in said
        return False
    for name in ("report.md", "report.html", "report.json"):
        text = (runs / name).read_text(encoding="utf-8")
        assert EVIL not in text or name == "report.json"
        assert "\x1b" not in text
    return True


def check_changes(runs, changes, name="dense/results.json") -> None:
    file = runs / "b" / name
    whole = json.loads(file.read_text())
    taken = {True: 0, False: 0}
    for path, new in changes(list(leaves(whole))):
        file.write_text(json.dumps(changed(whole, path, new)))
        taken[check(runs)] += 1
    assert min(taken.values()) > 2, taken


def test_results_that_somebody_changed_are_reported_or_named(runs):
    dice = random.Random(0)
    check_changes(runs, lambda paths: [(dice.choice(paths), dice.choice([..., *JUNK])) for _ in range(20)])


@pytest.mark.slow
def test_results_with_any_part_changed_are_reported_or_named(runs):
    check_changes(runs, lambda paths: [(path, new) for path in paths for new in [..., *JUNK]])


def test_costs_that_somebody_changed_are_reported_or_named(runs):
    dice = random.Random(0)
    changes = lambda paths: [(dice.choice(paths), dice.choice([..., *JUNK])) for _ in range(20)]  # noqa: E731
    check_changes(runs, changes, "costs.json")


@pytest.mark.slow
def test_costs_with_any_part_changed_are_reported_or_named(runs):
    check_changes(runs, lambda paths: [(path, new) for path in paths for new in [..., *JUNK]], "costs.json")


@pytest.mark.parametrize("path", [*(("rows", "ppe 0.45", key) for key in ("counted", "ttft")), ("of",)], ids=str)
def test_what_may_be_null_in_costs_is_as_if_it_were_not_there(runs, path):
    path = (*path, "quartiles") if path[-1] == "ttft" else path
    inner = costs = copy.deepcopy({**COSTS, "of": {}})
    for key in path[:-1]:
        inner = inner[key]
    texts = []
    for change in (lambda: inner.update({path[-1]: None}), lambda: inner.pop(path[-1])):
        change()
        write_json(runs / "b" / "costs.json", costs)
        assert check(runs)
        texts.append((runs / "report.md").read_text())
    assert texts[0] == texts[1]


def test_numbers_that_no_float_holds_are_named(runs):
    """For example a whole number of 400 digits."""
    file = runs / "b" / "dense" / "results.json"
    for path in (("costs", "retention"), ("metrics", "a"), ("headline", "value")):
        kept = file.read_text()
        file.write_text(json.dumps(changed(json.loads(kept), path, 10**400)))
        with pytest.raises(InputError, match=r"results\.json is damaged"):
            collect(runs)
        file.write_text(kept)


def test_runs_behind_links_to_folders_are_reported_once(runs):
    """A benchmark's folder and a run's, moved to another disk; a link to known results, or to nothing, adds nothing."""
    shown = [run["name"] for run in collect(runs)]
    (runs / "b" / "ppe").rename(runs.parent / f"{runs.name}-far")
    (runs / "b" / "ppe").symlink_to(runs.parent / f"{runs.name}-far")
    (runs / "a").symlink_to("b")
    (runs / "loop").symlink_to("loop")
    (runs / "up").symlink_to("..")
    assert [run["name"] for run in collect(runs)] == shown
    (runs / "b").rename(runs.parent / f"{runs.name}-b")
    (runs / "a").unlink()
    (runs / "b").symlink_to(runs.parent / f"{runs.name}-b")
    assert {run["folder"] for run in collect(runs)} == {str(runs / "b" / name) for name in ("dense", "ppe")}


@pytest.mark.parametrize("path", [("types", "row", "count"), ("headline", "value"), ("scale", "factor")], ids=str)
def test_what_is_lacking_is_named(runs, path):
    file = runs / "b" / "dense" / "results.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, ...)))
    with pytest.raises(InputError, match=rf"results\.json is damaged \(.*{path[-1]}"):
        collect(runs)


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"samples": 4}'])
def test_a_run_whose_results_say_nothing_is_named_and_not_left_out(runs, content):
    (runs / "b" / "dense" / "results.json").write_text(content)
    (runs / "b" / "dense" / "settings.json").write_text("{}")
    with pytest.raises(InputError, match=r"dense/results\.json is damaged .*: delete it and run the evaluation again"):
        collect(runs)
    (runs / "b" / "dense" / "settings.json").unlink()  # files of some other program
    assert [run["name"] for run in collect(runs)] == ["ppe k=8 0.45"]


def test_lines_that_somebody_changed_are_shown_or_named(runs):
    folder = runs / "b" / "dense"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    taken = {True: 0, False: 0}
    for key in ("index", "type", "prompt", "GT", "answer", "score", "error"):
        for new in (JUNK[number] for number in range(len(key) % 9, len(JUNK), 9)):
            write_rows(folder, [{**rows[0], key: new}, *rows[1:]])
            taken[check(runs)] += 1
    assert min(taken.values()) > 2, taken


@pytest.mark.parametrize("right", [3, 2.5, None, True, ["a", 3], {"a": 1}], ids=str)
def test_a_right_answer_of_any_kind_stands_in_the_page(runs, right):
    """Benchmarks may have numbers as right answers."""
    folder = runs / "b" / "dense"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    write_rows(folder, [{**row, "GT": right} for row in rows])
    assert check(runs)


@pytest.mark.parametrize("name", ["results.json", "predictions.jsonl"])
@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"null", b"\xff", b"5"], ids=lambda content: str(content[:5]))
def test_files_of_another_kind_are_named(runs, name, content):
    (runs / "b" / "dense" / name).write_bytes(content)
    check(runs)
    (runs / "b" / "dense" / name).unlink()
    os.mkfifo(runs / "b" / "dense" / name)
    check(runs)
