"""The benchmarks run from end to end, at sizes that take seconds, and write complete results."""

import importlib
import json
import sys

import bench_ops
import bench_prefill
import pytest
import torch
from bench import cases
from bench.decoder import settings
from bench.operators import operators

from ppe_npu.backends import dispatch
from ppe_npu.errors import InputError
from ppe_npu.methods import IPCV
from ppe_npu.methods.listing import of_pictures


@pytest.mark.ci
def test_every_op_is_timed_and_written(tmp_path, capsys):
    output = tmp_path / "ops.json"
    bench_ops.main(["--sizes", "tiny", "--rounds", "2", "--threads", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    rows = result["rows"]
    assert {row["op"] for row in rows} == set(cases.OPS)
    assert min(result["peaks"].values()) > 0
    for row in rows:
        assert row["limit_ms"] > 0
        times = row["times"]
        assert ("released loop" in times) == (
            row["op"] in ("merge", "dpc_knn", "group_mean") and row["pass"] == "forward"
        )
        for entry in times.values():
            assert 0 < entry["fastest_ms"] <= entry["ms"] <= entry["slowest_ms"]
            assert entry["of_limit"] == pytest.approx(row["limit_ms"] / entry["ms"])
            assert ("to_loop" in entry) == ("released loop" in times)
        assert times["reference"]["to_reference"] == 1.0
    (row,) = (row for row in rows if row["op"] == "rotary" and row["pass"] == "step")
    assert row["not_measured"]["torch_npu"] == "needs npu"
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "not measured: " in printed
    assert "best: dpc_knn by reference" in printed


def test_what_fails_is_named_and_all_else_is_measured(tmp_path, monkeypatch, capsys):
    """An NPU cannot sort in fp64, as the released loop does: no fault of ours, and neither is a missing plot."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # not installed

    def breaks(*_):
        raise RuntimeError("sorts no fp64\nand more")

    output = tmp_path / "ops.json"
    monkeypatch.setattr(cases.released_loop, "means_of_frames", breaks)
    monkeypatch.setattr(importlib.import_module("ppe_npu.backends.reference.group_mean"), "group_mean", breaks)
    options = ["--sizes", "tiny", "--rounds", "1", "--threads", "1", "--ops", "group_mean", "--output", str(output)]
    with pytest.raises(
        SystemExit, match=r"failed: group_mean 2 x 24 x 16 by reference \(RuntimeError: sorts no fp64\)"
    ):
        bench_ops.main(options)
    assert "no plot: the plot needs matplotlib, which is not installed" in capsys.readouterr().out
    forward, step = json.loads(output.read_text())["rows"]
    assert forward["not_measured"]["released loop"] == "RuntimeError: sorts no fp64"
    assert forward["failed"] == step["failed"] == ["reference (RuntimeError: sorts no fp64)"]
    assert "cpu" in forward["times"]
    assert "cpu" in step["times"]


def test_counting_alone_runs_nothing(capsys):
    bench_ops.main(["--count", "790e12", "4.3e12"])
    (line,) = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("dpc_knn") and "32 x 768" in line
    )
    assert line.split()[-3:] == ["77.31", "100.9", "0.0979"]  # 2 * 32 * 768^2 * 2048; at 790 TFLOP/s


def test_an_op_that_is_unknown_is_refused():
    with pytest.raises(InputError, match="use some of merge"):
        bench_ops.main(["--ops", "dpc"])


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """bench(*options) runs parts of the benchmark of whole models; returns the parts in its file, and its picture."""
    output = tmp_path / "prefill.json"
    monkeypatch.setattr(bench_prefill, "operators", lambda frames: {"ours": 1, "released": frames})  # it has a test

    def run(*options):
        given = ["--sizes", "tiny", "--rounds", "1", "--threads", "1", "--output", str(output)]
        bench_prefill.main([*given, *options])
        return json.loads(output.read_text())["parts"], output.with_suffix(".png").read_bytes()

    return run


@pytest.mark.ci
def test_prefill_is_timed_setting_by_setting(bench):
    parts, picture = bench("--parts", "prefill")
    assert list(parts) == ["tiny video-3x16 prefill"]
    rows = parts["tiny video-3x16 prefill"]["rows"]
    assert set(rows) == set(settings(3, blocks=2))
    assert rows["dense"]["output_length"] == 57
    assert rows["ppe 0.45"]["output_length"] == 9 + 3 * 8
    for name, row in rows.items():
        assert ("tower_ms" in row) == ("decoder_ms" in row) == (name != "ipcv")
        assert row["ms"] >= row.get("decoder_ms", 0) >= 0
        assert row["rounds"] == 1
        assert row["kv_mib"] > 0
        assert row["peak_mib"] > 0
    assert rows["unmodified"]["compression_share"] == 0.0 < rows["ppe 0.45"]["compression_share"] < 1.0
    assert picture.startswith(b"\x89PNG")
    with pytest.raises(InputError, match="name another file"):
        bench("--rounds", "2")


@pytest.mark.ci
def test_the_compression_that_is_named_is_compared_with_dense(bench):
    """all: every method, also those whose default layers this decoder of three layers lacks."""
    parts, picture = bench("--parts", "prefill", "--compression", "divprune:ratio=0.1", "all")
    rows = parts["tiny video-3x16 prefill"]["rows"]
    assert list(rows) == ["dense", "divprune:ratio=0.1", *of_pictures()]
    assert not any("not_measured" in row for row in rows.values())
    assert rows["divprune:ratio=0.1"]["output_length"] == 9 + 3 * 2
    assert rows["divprune"]["output_length"] == 9 + 3 * 7
    assert rows["sparsevlm"]["compression_share"] > 0
    assert picture.startswith(b"\x89PNG")
    with pytest.raises(InputError, match="preset 'divprun' is unknown"):
        bench("--compression", "divprun")
    with pytest.raises(InputError, match="has divprune twice: leave one out"):
        bench("--compression", "divprune", "all")


@pytest.mark.ci
def test_a_named_step_before_the_tower_changes_the_towers_time(bench):
    parts, _ = bench("--cases", "image-16", "--parts", "prefill", "--compression", "pixelprune:max_kept=8", "dpc_knn")
    rows = parts["tiny image-16 prefill"]["rows"]
    assert {name: "tower_ms" in row for name, row in rows.items()} == {
        "dense": True, "pixelprune:max_kept=8": False, "dpc_knn": True,
    }  # fmt: skip


@pytest.mark.ci
def test_of_a_picture_cells_are_dropped_before_the_tower(bench, tmp_path, monkeypatch):
    """A setting that fails costs no other one its figures, and no round begins when the time is over."""

    def breaks(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(IPCV, "choose", breaks)
    with pytest.raises(SystemExit, match=r"failed: ipcv \(RuntimeError: no such kernel\)"):
        bench("--parts", "prefill", "--cases", "image-16", "--rounds", "3", "--seconds", "0")
    (part,) = json.loads((tmp_path / "prefill.json").read_text())["parts"].values()
    rows = part["rows"]
    assert rows.pop("ipcv") == {"not_measured": "RuntimeError: no such kernel"}
    assert rows["pixelprune 0.45"]["output_length"] == rows["ppe 0.45"]["output_length"] == 9 + 8
    assert rows["dense"]["output_length"] == 9 + 16
    assert {row["rounds"] for row in rows.values()} == {1}


@pytest.mark.slow
def test_decoding_and_training_are_timed_part_by_part(bench):
    first, _ = bench("--parts", "decode")
    dispatch.reset()
    both, picture = bench("--parts", "train")
    assert "linear_cross_entropy" in dispatch.chosen()  # the loss without logits, as in the trainer
    assert both["tiny video-3x16 decode"] == first["tiny video-3x16 decode"]
    for part in both.values():
        for row in part["rows"].values():
            assert row["tokens_per_s"] > 0
    assert picture.startswith(b"\x89PNG")


def test_a_merge_takes_no_more_operators_for_more_frames():
    few, many = operators(2), operators(16)
    assert few["ours"] == many["ours"]
    assert many["released"] > 7 * few["released"]


def test_a_clustering_is_also_timed_without_a_matrix_of_products():
    pytest.importorskip("triton")
    from ppe_npu.backends.cuda import tiles

    def clustering():
        return tiles.plan(2, 100, 64, torch.bfloat16).stored

    assert bench_ops.products_made_again(clustering)() is False
    assert clustering() is True
