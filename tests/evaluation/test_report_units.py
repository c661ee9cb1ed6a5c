"""What a report calls a score: the benchmark's unit and metric, whatever the scores; other metrics get a table."""

from __future__ import annotations

import json

import pytest
from report_runs import Plain, Points, some, write_run

from ppe_npu.evaluation import scale
from ppe_npu.evaluation.benchmarks.table import published
from ppe_npu.evaluation.report import write_report


def test_a_score_in_points_is_shown_as_it_is_and_paired_by_its_replicates(tmp_path):
    results = [
        write_run(tmp_path / "a", some(0.9), benchmark="mme", cls=Points),
        write_run(tmp_path / "b", some(0.5), "keep_one", 0.5, benchmark="mme", cls=Points),
        write_run(tmp_path / "c", some(0.8), benchmark="layout"),
        write_run(tmp_path / "d", some(0.6), "keep_one", 0.5, benchmark="layout"),
    ]
    text = write_report(results, tmp_path / "r.md", "Points")[0].read_text()
    assert "| method, under protocol checkpoint | mme (points, of 800) | layout | Avg of 1 in % | % of dense |" in text
    assert "| keep_one 0.5 | 400.0 | 60.0 | 60.0 |" in text  # points do not enter Avg
    assert "mme: not in percent, so not part of Avg." in text
    row = json.loads((tmp_path / "r.json").read_text())["benchmarks"]["mme"]["rows"][1]
    assert row["against_dense"]["test"] == "paired bootstrap"
    assert row["against_dense"]["mean"] == pytest.approx(20 * (20 - 36))
    assert row["against_dense"]["high"] < 0
    assert row["low"] < 400 < row["high"]


@pytest.mark.parametrize("share", [0.0, 0.09, 0.102])  # a CIDEr of 0, 0.9 and 1.02
def test_the_unit_is_the_benchmarks_whatever_the_scores(tmp_path, share):
    class Captions(Points):
        headline, maximum, factor = "CIDEr", 10.0, 100.0

        def metrics(self, rows):
            return {"CIDEr": 10 * sum(row["score"] for row in rows) / len(rows)}

    results = [
        write_run(tmp_path / "a", [share] * 8, benchmark="captions", cls=Captions),
        write_run(tmp_path / "b", some(0.8), benchmark="layout"),
    ]
    path, table = write_report(results, tmp_path / "r.md", "Captions")
    assert table.startswith(
        "| method, under protocol checkpoint | captions (CIDEr, x 100) | layout | Avg of 1 in % | % of dense |"
    )
    assert f"| dense | {1000 * share:.1f} | 80.0 | 80.0 |" in table
    assert "| method, under protocol checkpoint | CIDEr, x 100 | 95 % |" in path.read_text()


def test_the_units_of_the_published_benchmarks():
    units = {name: scale.named("s", scale.declared(cls)) for name, cls in published().items()}
    assert {name: unit for name, unit in units.items() if unit != "s, %"} == {
        "flickr30k": "s, x 100",
        "mme": "s, of 2,800",
        "ocrbench": "s, of 1,000",
    }


def test_a_unit_that_is_not_declared_or_broken_is_said(tmp_path):
    class Own(Points):
        maximum = None

    class Low(Points):
        maximum = 30

    results = [
        write_run(tmp_path / "a", [0.0] * 8, benchmark="own", cls=Own),
        write_run(tmp_path / "b", some(0.8), benchmark="low", cls=Low),
    ]
    text = write_report(results, tmp_path / "r.md", "Units")[0].read_text()
    assert "| dense | 0.00 | 640.0 | - |" in text
    assert "own: the benchmark declares no maximum for points: shown raw." in text
    assert "low: a score of 640 exceeds the benchmark's declared maximum of 30." in text


class Pairs(Points):
    """Two samples are judged together; there are metrics beside the headline."""

    headline, maximum, factor = "both", 1.0, 100.0

    def unit(self, row):
        return row["index"] // 2

    def metrics(self, rows):
        return {"both": 0.25, "first": 0.625, "row": 0.5}


@pytest.mark.usefixtures("drawn")
def test_the_official_metrics_stand_in_a_table_and_no_accuracy_beside_another_score(tmp_path, monkeypatch):
    results = [
        write_run(tmp_path / "a", some(0.9), cls=Pairs),
        write_run(tmp_path / "b", some(0.5), "ppe", 0.5, cls=Pairs),
    ]
    monkeypatch.setattr("ppe_npu.evaluation.plot._bars", None)  # drawing bars of them would fail
    own = write_report(results, tmp_path / "r.md", "Pairs")[0].read_text().split("## layout")[1].split("\n## ")[0]
    assert "40 samples, judged in 20 groups, score: both;" in own
    assert "| method, under protocol checkpoint | both, % | 95 % |" in own  # no columns "row" and "col" of accuracies
    assert "| metric, %, under protocol checkpoint | dense | ppe k=8 0.5 |" in own
    assert "\n| first | 62.5 | 62.5 |\n| row | 50.0 |" in own
    assert json.loads((tmp_path / "r.json").read_text())["benchmarks"]["layout"]["rows"][0]["metrics"]["first"] == 0.625


def test_metrics_beside_accuracy_leave_out_what_is_there_as_a_type(tmp_path):
    class Groups(Plain):
        maximum = 1.0

        def metrics(self, rows):
            return {"row": 0.5, "all rows": 0.375}

    text = write_report([write_run(tmp_path / "a", some(0.5), cls=Groups)], tmp_path / "r.md", "Groups")[0].read_text()
    assert "| method, under protocol checkpoint | row | col | all: accuracy, % |" in text
    assert "| metric, %, under protocol checkpoint | dense |\n| --- | ---: |\n| all rows | 37.5 |\n\n" in text
