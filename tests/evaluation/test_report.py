"""The report: tables, JSON and a picture from the results of any benchmarks; what is missing is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from report_runs import some, write_run

from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.evaluation import statistics, tables
from ppe_npu.evaluation.report import collect, comparisons_of, unfinished, write_report
from ppe_npu.evaluation.results import method, title
from ppe_npu.files import write_json
from ppe_npu.utils import escape


@pytest.fixture
def runs(tmp_path):
    """Two benchmarks, dense and two methods at two ratios."""
    for name, loss in (("layout", 0.3), ("docvqa", 0.1)):
        write_run(tmp_path / name / "dense", some(0.9), benchmark=name)
        for ratio in (0.25, 0.5):
            for preset, more in (("ppe", 0.0), ("keep_one", 0.1)):
                scores = some(0.9 - loss * (1 - ratio) - more)
                write_run(tmp_path / name / f"{preset}{ratio}", scores, preset, ratio, benchmark=name)
    return tmp_path


def test_methods_stand_by_kept_share_beside_dense(runs):
    path, table = write_report(collect(runs), runs / "report.md", "Two benchmarks")
    lines = table.splitlines()
    assert lines[0] == "| method, under protocol checkpoint | docvqa | layout | Avg | % of dense |"
    groups = [line for line in lines if "**" in line]
    assert [group.split("|")[1].strip(" *") for group in groups] == ["Upper bound, 100 %", "Retain 50 %", "Retain 25 %"]
    assert "| dense | 90.0 | 90.0 | 90.0 | 100.0 |" in lines
    assert "| ppe k=8 0.5 | 85.0 | 75.0 | 80.0 | 88.9 |" in lines
    assert lines.index("| ppe k=8 0.5 | 85.0 | 75.0 | 80.0 | 88.9 |") > lines.index(groups[1])
    assert table in path.read_text()


def test_each_benchmark_has_its_scores_tests_and_costs(runs):
    text = write_report(collect(runs), runs / "report.md", "Two benchmarks")[0].read_text()
    own = text.split("## layout")[1].split("\n## ")[0]
    assert "40 samples, score: accuracy; fp32 on a test, batches of 4. Samples per type: row 20, col 20." in own
    assert "Protocol: checkpoint." in own
    assert "| method, under protocol checkpoint | row | col | all: accuracy, % | 95 % | minus dense | 95 % | p |" in own
    (dense,) = [line for line in own.splitlines() if line.startswith("| dense | 80.0 | 100.0 | 90.0 |")]
    assert dense.endswith("| - | - | - |")
    (ppe,) = [line for line in own.splitlines() if line.startswith("| ppe k=8 0.5 |") and "to" in line]
    assert "| 75.0 |" in ppe
    assert "| -15.0 |" in ppe
    assert "| visual tokens | kept | TTFT ms | prefill ms | total ms | tokens/s | peak MiB |" in own
    assert "| peak MiB | prompt KV bytes | KV bytes at end |" in own
    # TTFT is that of the whole batch, 4 * 12.5 ms; the 2 tokens after the first take 7.5 ms, a sample's part.
    assert "| ppe k=8 0.5 | 18.0 | 50 % | 50.0 | 12.50 | 20.00 | 266.7 | 1 | 1,024 | 2,048 |" in own
    assert "## What is missing" not in text


def test_what_is_better_than_dense_has_a_plus(tmp_path):
    results = [write_run(tmp_path / "a", some(0.5)), write_run(tmp_path / "b", some(0.75), "ppe", 0.5)]
    assert "| +25.0 |" in write_report(results, tmp_path / "r.md", "Better")[0].read_text()


def test_the_numbers_are_also_json(runs):
    write_report(collect(runs), runs / "report.md", "Two benchmarks", missing=["x: not finished"])
    found = json.loads((runs / "report.json").read_text())
    assert (found["title"], found["missing"]) == ("Two benchmarks", ["x: not finished"])
    (row,) = [row for row in found["benchmarks"]["layout"]["rows"] if row["name"] == "keep_one 0.25"]
    against = row["against_dense"]
    assert row["score"] == pytest.approx(0.575)
    assert row["low"] < row["score"] < row["high"]
    assert against["mean"] == pytest.approx(0.575 - 0.9)
    assert against["low"] < against["mean"] < against["high"] < 0
    assert against["test"] == "exact McNemar"
    assert against["p"] == pytest.approx(statistics.sign_test(2, 15))  # wins and losses among 40 samples
    assert row["costs"]["ttft_seconds"] == pytest.approx(0.05)


@pytest.mark.usefixtures("drawn")
@pytest.mark.ci
def test_the_picture_is_drawn_with_a_curve_a_method(runs, monkeypatch):
    from matplotlib.axes import Axes

    drawn, original = [], Axes.errorbar
    monkeypatch.setattr(
        Axes,
        "errorbar",
        lambda axes, x, y, *a, **k: drawn.append((k["label"], list(y))) or original(axes, x, y, *a, **k),
    )
    write_report(collect(runs), runs / "new" / "report.md", "Two benchmarks")
    assert dict(drawn[2:]) == {"keep_one": pytest.approx([57.5, 65.0]), "ppe k=8": pytest.approx([67.5, 75.0])}
    assert [label for label, _ in drawn] == ["keep_one", "ppe k=8"] * 2
    with Image.open(runs / "new" / "report.png") as plot:
        pixels = np.asarray(plot.convert("RGB"))
    assert pixels.shape[1] > 1200  # three panels
    # The colours of both methods are there.
    for colour in ((31, 119, 180), (255, 127, 14)):
        assert (abs(pixels.astype(int) - colour).sum(-1) < 30).sum() > 100
    assert sorted(file.name for file in (runs / "new").iterdir()) == ["report.json", "report.md", "report.png"]


def test_seeds_become_a_mean_with_its_spread(tmp_path):
    results = [write_run(tmp_path / f"d{n}", some(0.9)) for n in range(2)]
    results += [write_run(tmp_path / str(n), some(share), "keep_one", 0.5) for n, share in enumerate((0.5, 0.7))]
    text = write_report(results, tmp_path / "r.md", "Seeds")[0].read_text()
    assert "| 60.0 (50.0 to 70.0) |" in text
    row = json.loads((tmp_path / "r.json").read_text())["benchmarks"]["layout"]["rows"][1]
    assert (row["runs"], row["spread"]) == (2, [0.5, 0.7])
    assert row["against_dense"]["mean"] == pytest.approx(-0.3)
    assert row["against_dense"]["test"] == "sign-flip permutation"  # means over seeds are not right or wrong


def test_seeds_whose_samples_all_score_alike_have_wilsons_interval(tmp_path):
    """Their interval is that of one such run; without their predictions there is none, and a line says so."""
    results = [write_run(tmp_path / str(number), [1.0] * 20, "keep_one", 0.5) for number in range(2)]
    (row,) = comparisons_of(results)[0]["benchmarks"]["layout"]["rows"]
    one = results[0]["accuracy"]
    assert (row["low"], row["high"], row["runs"]) == (one["low"], one["high"], 2)
    (tmp_path / "1" / "predictions.jsonl").unlink()
    (found,) = comparisons_of(results)
    assert found["benchmarks"]["layout"]["rows"][0]["low"] is None
    why = "a predictions.jsonl or a score is missing, or the runs' samples differ"
    assert f"layout, keep_one 0.5: no interval ({why})." in found["missing"]


@pytest.mark.parametrize(
    ("key", "told"), [("dtype", True), ("max_new_tokens", True), ("seed", False), ("model", False)]
)
def test_a_mean_of_runs_that_were_asked_otherwise_says_so(tmp_path, key, told):
    runs = [write_run(tmp_path / str(number), some(0.5)) for number in range(2)]
    for number, result in enumerate(runs):
        result["settings"][key] = f"value {number}"
    text = write_report(runs, tmp_path / "r.md", "Two")[0].read_text()
    assert (f"the mean of 2 runs that differ in more than the seed: {escape.markdown(key)}." in text) == told


def test_what_is_missing_is_a_dash_and_a_line(tmp_path):
    results = [
        write_run(tmp_path / "a", some(0.9), benchmark="one"),
        write_run(tmp_path / "b", some(0.5), "keep_one", 0.5, benchmark="one"),
        write_run(tmp_path / "c", some(0.5), "keep_one", 0.5, benchmark="two"),
        write_run(tmp_path / "d", some(0.5, 30), "ppe", 0.5, benchmark="one"),
    ]
    results[3]["settings"]["data"] = "another"
    for result in results:
        result["costs"]["peak_memory"] = None
    text = write_report(results, tmp_path / "r.md", "Holes")[0].read_text()
    assert "| keep_one 0.5 | 50.0 | 50.0 | 50.0 | - |" in text
    assert "| dense | 90.0 | - | - | - |" in text
    missing = text.split("## What is missing")[1]
    for line in (
        "dense: no result on two, so no average.",
        "two: there is no dense run to compare with.",
        "one, ppe k=8 0.5: not compared with dense (the runs use different data).",
        "Peak memory: not measured on the CPU.",
    ):
        assert f"* {line}" in missing


def written_panels(monkeypatch) -> list[str]:
    """The labels of the vertical axes that are drawn from now on."""
    from matplotlib.axes import Axes

    labels, original = [], Axes.set_ylabel
    monkeypatch.setattr(Axes, "set_ylabel", lambda axes, text, **k: labels.append(text) or original(axes, text, **k))
    return labels


@pytest.mark.usefixtures("drawn")
@pytest.mark.ci
def test_where_dense_scores_nothing_the_others_still_have_their_share(tmp_path, monkeypatch):
    results = [
        write_run(tmp_path / "a", some(0.8), benchmark="one"),
        write_run(tmp_path / "b", some(0.4), "ppe", 0.5, benchmark="one"),
        write_run(tmp_path / "c", some(0.0), benchmark="two"),
        write_run(tmp_path / "d", some(0.1), "ppe", 0.5, benchmark="two"),
    ]
    panels = written_panels(monkeypatch)
    path, table = write_report(results, tmp_path / "r.md", "Zero")
    assert "| ppe k=8 0.5 | 40.0 | 10.0 | 25.0 | 50.0 |" in table
    assert "two: dense scores 0, so not part of % of dense." in path.read_text()
    assert panels[0] == "mean of score / dense, %"


@pytest.mark.usefixtures("drawn")
@pytest.mark.ci
def test_a_picture_of_all_benchmarks_is_of_what_the_table_has(tmp_path, monkeypatch):
    zero = [write_run(tmp_path / f"{n}{p}", some(0.0), p, r, n) for n in "ab" for p, r in (("dense", 1), ("ppe", 0.5))]
    panels = written_panels(monkeypatch)
    assert "| ppe k=8 0.5 | 0.0 | 0.0 | 0.0 | - |" in write_report(zero, tmp_path / "r.md", "Zero")[1]
    assert panels == ["accuracy, %"] * 2
    panels.clear()
    write_report([zero[1], zero[3]], tmp_path / "r.md", "No dense")
    assert panels == ["Avg: mean of scores in %", "accuracy, %", "accuracy, %"]


def test_without_predictions_wilson_stands_in_and_nothing_is_tested(tmp_path):
    results = [write_run(tmp_path / "a", some(0.9)), write_run(tmp_path / "b", some(0.5), "keep_one", 0.5)]
    (tmp_path / "b" / "predictions.jsonl").unlink()
    text = write_report(results, tmp_path / "r.md", "Bare")[0].read_text()
    assert "35.2 to 64.8" in text  # Wilson's of 20 of 40
    assert "not compared with dense (a predictions.jsonl or a score is missing" in text


def test_failures_and_other_weights_are_said(tmp_path):
    results = [write_run(tmp_path / "a", some(0.9)), write_run(tmp_path / "b", some(0.5), "ppe", 0.5, errors=2)]
    results[1]["settings"]["weights"] = "others"
    text = write_report(results, tmp_path / "r.md", "Failures")[0].read_text()
    assert "2 of 80 answers failed and count as wrong." in text
    assert "The runs use 2 different sets of weights" in text


def test_what_failed_altogether_costs_nothing_that_is_known(tmp_path):
    results = [
        write_run(tmp_path / "a", some(0.9), benchmark="good"),
        write_run(tmp_path / "b", some(0.5), "ppe", 0.25, benchmark="good"),
        write_run(tmp_path / "c", [1.0], benchmark="bad"),
        write_run(tmp_path / "d", [0.0], "ppe", 0.25, benchmark="bad", failed=True),
    ]
    assert set(results[3]["costs"].values()) == {None}
    path, table = write_report(results, tmp_path / "r.md", "Failed")
    assert "**Retain 25 %**" in table  # of the benchmark that was answered
    own = path.read_text().split("## bad")[1].split("\n## ")[0]
    assert "1 sample, score: accuracy; fp32 on a test, batches of 4. 1 of 2 answers failed and count as wrong." in own
    assert "| ppe k=8 0.25 | - | - | - | - | - | - | - | - | - |" in own
    assert "* bad, ppe k=8 0.25: no costs, because no sample was answered." in path.read_text()
    alone = write_report(results[2:], tmp_path / "alone.md", "Failed")[1]
    assert "**Retention unknown**" in alone


def test_many_question_types_have_a_table_of_their_own(tmp_path):
    kinds = [f"kind{number}" for number in range(9)]
    results = [write_run(tmp_path / "a", some(0.5, 45), kinds=kinds)]
    text = write_report(results, tmp_path / "r.md", "Types")[0].read_text()
    assert "| method, under protocol checkpoint | accuracy, % | 95 % |" in text
    assert "| accuracy, % by type, under protocol checkpoint | dense |" in text
    assert text.count("| kind") == 9


def test_only_finished_runs_are_collected_and_the_others_named(runs):
    (runs / "layout" / "ppe0.5" / "results.json").unlink()
    write_json(runs / "layout" / "ppe0.5" / "settings.json", {"samples": 50})
    write_json(runs / "results.json", [{"another": "program's"}])
    assert len(collect(runs)) == 9
    assert unfinished(runs) == ["layout/ppe0.5: not finished (40 of 50 samples), not shown."]
    assert [result["name"] for result in collect(runs)].count("dense") == 2
    assert collect(runs)[0]["name"] == "dense"


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="no results"):
        write_report([], tmp_path / "r.md", "Nothing")
    with pytest.raises(InputError, match="holds no results of an evaluation"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("preset", "changes", "name", "curve"),
    [
        ("dense", {}, "dense", "dense"),
        ("chatunivi", {"ratio": 0.3}, "chatunivi 0.3", "chatunivi"),
        ("ppe", {"k": 4, "members": "last"}, "ppe k=4 last 0.45", "ppe k=4 last"),
        ("ppe_plus", {}, "ppe k=8 sizes counted 0.45", "ppe k=8 sizes counted"),
        ("tome", {"proportional_attention": True}, "tome keep_one sizes counted 0.5", "tome keep_one sizes counted"),
        ("ppe", {"layers": [3, 7]}, "ppe k=8 layers 3+7 0.45", "ppe k=8 layers 3+7"),
        ("keep_one", {"order": "score"}, "keep_one score order 0.45", "keep_one score order"),
        ("keep_one", {"temporal_ratio": 0.5, "ratio": 0.25}, "keep_one events 0.5 0.25", "keep_one events 0.5"),
        ("ppe", {"ratio": [0.5, 0.25], "k": 1}, "ppe 0.5+0.25", "ppe"),
    ],
)
def test_names_tell_settings_apart_and_curves_leave_the_ratio_out(preset, changes, name, curve):
    compression = CompressionConfig.preset(preset, **changes).to_dict()
    assert (title(compression), method(compression)) == (name, curve)


def test_no_probability_is_zero():
    assert [tables.probability(p) for p in (1.0, 0.0312, 3e-44, 0.0)] == ["1", "0.031", "3e-44", "<1e-300"]
    assert tables.probability(statistics.sign_test(0, 1600)) == "<1e-300"
