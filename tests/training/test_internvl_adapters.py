"""An adapter trained on InternVL is loaded, evaluated and merged like one on any other family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import run  # noqa: F401
from families import supported
from tolerances import assert_equal

from ppe_npu.checkpoints.loading import load_model
from ppe_npu.training.adapted import Checkpoint
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.export import merge_lora
from ppe_npu.training.trainer import train

pytestmark = supported


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    import tiny_internvl

    root = tmp_path_factory.mktemp("tiled")
    start, records = tiny_internvl.save(root / "start"), tiny_internvl.write_records(root / "data")
    asked = {"max_steps": 2, "batch_size": 3, "learning_rate": 2e-2, "warmup_steps": 0, "device": "cpu"}
    asked |= {"compression": "dense", "video": {"nframes": 4}, "adapter": {"rank": 2}, "num_workers": 0}
    config = TrainConfig(model=str(start), data=str(records), output=str(root / "run"), **asked)
    return Path(train(config, announce=False).final)


@pytest.mark.ci
def test_it_is_the_merged_model(adapter, tmp_path):
    merge_lora(adapter, tmp_path / "merged")
    asked = Checkpoint.of(adapter, tiled=True).load("cpu")
    merged, base = load_model(tmp_path / "merged", tiled=True), load_model(asked_base(adapter), tiled=True)
    for name, value in merged.state_dict().items():
        assert_equal(asked.state_dict()[name], value)
    assert any(not torch.equal(base.state_dict()[name], value) for name, value in merged.state_dict().items())


def asked_base(adapter):
    return json.loads((adapter / "base.json").read_text())["model"]


@pytest.mark.ci
def test_the_commands_take_it(adapter, tmp_path, run):  # noqa: F811
    code, out, err = run("merge-lora", "--adapter", adapter, "--output", tmp_path / "merged")
    assert code == 0, out + err
    rows = {}
    from test_internvl_eval import BENCHMARK

    data = adapter.parent.parent / "data"
    (tmp_path / "own.py").write_text(BENCHMARK.format(root=str(data)))
    for name, folder in (("adapter", adapter), ("merged", tmp_path / "merged")):
        asked = ("--benchmarks", f"{tmp_path / 'own.py'}:Mixed", "--compression", "dense", "--nframes", "4")
        code, out, err = run("eval", "--model", folder, "--output", tmp_path / name, "--device", "cpu", *asked)
        assert code == 0, out + err
        found = next((tmp_path / name / "Mixed").glob("*/predictions.jsonl")).read_text().splitlines()
        rows[name] = [row["answer"] for row in map(json.loads, found)]
    assert len(rows["adapter"]) == 6
    assert rows["adapter"] == rows["merged"]
    code, out, err = run("describe", "--model", adapter, "--image", data / "1.png", "--prompt", "What")
    assert code == 2
    assert "only train and eval prepare" in out + err
