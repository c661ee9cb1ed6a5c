"""`make demo METHODS=`: from names to a page; and what the page says of numbers."""

import argparse
import json

import pytest
from command_line import refused

from ppe_npu.demo import methods, methods_page, pipeline, recipe
from ppe_npu.methods.base import published


@pytest.mark.slow
def test_named_methods_are_asked_and_tuned_and_put_into_a_table(small, tmp_path, monkeypatch):
    """A method with a field that looks into the vision tower, at one share."""
    monkeypatch.setattr(methods, "RATIOS", (0.25,))
    monkeypatch.setattr(methods, "TUNE", pipeline.TUNE)
    monkeypatch.setattr(methods, "EVAL", pipeline.EVAL)
    small.methods = ["hiprune:alpha=0.2"]
    assert pipeline.main(small) == 0
    page = (tmp_path / "demo" / "methods.md").read_text()
    heads = ("### Training-free", "### After fine-tuning", "### Costs")
    for words in (*heads, "smaller picture", "hiprune:alpha=0.2 | ppe"):
        assert words in page
    found = json.loads((tmp_path / "demo" / "methods.json").read_text())["results"]
    rows = {(one["row"], one["positions"], one["tuned"]): one for one in found}
    assert len(rows) == len(found) == 2 * 4
    assert rows["smaller picture", "", False]["costs"]["tokens_after"] == 9
    assert rows["hiprune:alpha=0.2", "ppe", True]["costs"]["tokens_after"] == 9
    assert 0 < rows["hiprune:alpha=0.2", "ppe", False]["selection"] < 1
    assert page == methods_page.measured(found, 'make demo DEVICE=cpu METHODS="hiprune:alpha=0.2"')


def test_all_are_all_that_say_something_of_pictures():
    names = methods.asked(["all"])
    assert set(published()) - set(names) == {"events", "pixelprune", "ipcv", "tome_tower"}
    assert methods.asked(["tome divprune", "tome"]) == ["tome", "divprune"]
    rows = methods.rows(["tome", "fastv"], methods.RATIOS)
    assert len(rows) == 2 * (1 + 3 + 2 * 2 * 3)
    assert {row.config.methods[0].layer for row in rows if row.name == "fastv"} == {1}
    assert {row.config.k for row in rows if row.positions == "ppe"} == {recipe.K}
    assert len({methods.RowJob(row, 0, "x", "cpu", 1).folder for row in rows}) == len(rows) / 2


def test_names_that_are_none_are_refused_before_any_work(run, tmp_path):
    for name in ("events", "best", "dense"):
        refused(run("demo", "--output", tmp_path / "d", "--methods", name), f"--methods '{name}'", "apet")
    refused(run("demo", "--output", tmp_path / "d", "--methods", "tome:rate=2"), "tome has no rate")
    refused(run("demo", "--output", tmp_path / "d", "--training-free"), "--training-free", "--methods all")
    tome = ("demo", "--output", tmp_path / "d", "--methods", "tome")
    refused(run(*tome, "--tune-ratios", "0.3"), "--tune-ratios 0.3", "0.5, 0.25, 0.1")
    refused(run(*tome, "--tune-ratios", "0.5", "--training-free"), "--training-free", "--tune-ratios")
    assert not (tmp_path / "d").exists()


def test_methods_may_be_tuned_at_some_of_the_shares():
    args = argparse.Namespace(training_free=False, tune_ratios=[0.25])
    rows = methods.rows(["tome"], methods.tuned_ratios(args))
    assert [row.ratio for row in rows if row.tuned] == [1, 0.25, 0.25, 0.25]
    assert len(rows) == 1 + 3 + 2 * 3 + 4
    for change, ratios in (({"tune_ratios": None}, [0.5, 0.25, 0.1]), ({"tune_ratios": [0.1, 0.5]}, [0.5, 0.1])):
        assert list(methods.tuned_ratios(argparse.Namespace(training_free=False, **change))) == ratios
    assert methods.tuned_ratios(argparse.Namespace(training_free=True, tune_ratios=None)) == ()


def test_a_half_of_the_page_has_the_shares_that_were_asked_there():
    free = results(dense=(1,), random=(0.5, 0.6), good=(0.7, 0.8))
    wider = [{**one, "share": 0.5} for one in free if one["row"] != "dense"]
    page = methods_page.measured([*free, *wider, *({**one, "tuned": True} for one in free)], "make demo")
    first, second = page.split("### After fine-tuning")
    assert "| 50% | 25% | bars 50% | bars 25% |" in first
    assert "| positions | 25% | bars 25% |" in second


def results(**of):
    """{method: (with one position, with PPE)} of two seeds, and controls; all shares alike."""
    out = []
    for name, values in of.items():
        for positions, value in zip(("keep_one", "ppe") if len(values) == 2 else ("",), values):
            types = {kind: {"accuracy": value} for kind in ("barlen", "count")}
            for seed in (0, 1):
                accuracy = {"accuracy": value, "count": 100}
                own = {"row": name, "positions": positions, "share": 0.25, "tuned": False, "seed": seed}
                out.append({**own, "types": types, "accuracy": accuracy, "costs": {"tokens_after": 9}})
    return out


def test_the_words_follow_the_numbers_whichever_way_they_fall():
    (line,) = methods_page.says(
        results(dense=(1,), random=(0.5, 0.6), good=(0.7, 0.8), same=(0.6, 0.61), bad=(0.5, 0.3)), [0.25], "So"
    )
    assert "25% kept: the best is good with PPE at 0.800, the best control random with PPE at 0.600" in line
    assert "1 of 3 methods are ahead of every control by more than 0.02: good" in line
    assert "ahead of one position on every seed with 1 of 3 methods, behind with 1 (bad)" in line
    (line,) = methods_page.says(results(dense=(1,), random=(0.9, 0.9), good=(0.7, 0.6)), [0.25], "So")
    assert "0 of 1 methods are ahead of every control by more than 0.02." in line
    assert "behind with 1 (good)" in line
