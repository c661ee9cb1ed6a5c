"""A report says how the weights were tuned: dense is no upper bound for weights that learned on compressed input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import run  # noqa: F401

from ppe_npu import CompressionConfig
from ppe_npu.checkpoints.compressed import note_compression
from ppe_npu.demo import scenes
from ppe_npu.evaluation.tuned import sentence, tuned_with


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (CompressionConfig.preset("ppe", k=4, ratio=0.25), "ppe k=4 0.25"),
        (CompressionConfig.preset("dense"), "dense"),
        (CompressionConfig.preset("divprune", ratio=0.5), "divprune keep_one 0.5"),
    ],
)
def test_the_name_is_the_reports_own(tmp_path, config, name):
    assert tuned_with(tmp_path) is None
    note_compression(tmp_path, config)
    assert tuned_with(tmp_path) == name
    assert sentence([{"settings": {"model": str(tmp_path)}}]) == f" The weights were tuned with {name}."
    assert sentence([{"settings": {"model": str(tmp_path)}, "tuned": None}]) == ""
    both = [{"settings": {}, "tuned": name}, {"settings": {"model": "/gone"}}]
    assert sentence(both) == f" The weights were tuned with {name} (not recorded for some runs)."


@pytest.mark.parametrize("trained", ["ppe", "dense", None])
def test_the_group_of_dense_says_what_its_weights_learned_with(run, tiny_folder, tmp_path, trained):  # noqa: F811
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    if trained is not None:
        note_compression(model, CompressionConfig.preset(trained, **({"k": 4} if trained == "ppe" else {})))
    scenes.write_split(tmp_path / "data", "test", 1, seed=2, questions_per_image=3)
    where = ["--data-root", tmp_path / "data", "--output", tmp_path / "out", "--max-new-tokens", 1, "--device", "cpu"]
    where += ["--cost-rounds", 0, "--no-smaller-input"]
    code, out, err = run("eval", "--model", model, *where, "--compression", "chatunivi", "dense", "ppe", "--k", 4)
    assert code == 0, err
    bound = "Dense, 100 %, weights tuned with ppe k=4 0.45" if trained == "ppe" else "Upper bound, 100 %"
    assert f"| **{bound}** |" in out
    report = (tmp_path / "out" / "report.md").read_text()
    assert ("The weights were tuned with" in report) == (trained is not None)
    names = [row["name"] for row in json.loads((tmp_path / "out" / "report.json").read_text())["overview"]]
    assert names == ["dense", "chatunivi 0.45", "ppe k=4 0.45"]
    assert "chatunivi 0.45: BENCHMARK/dpc_knn-renumber-k1-nearest-score-0.45" in out
