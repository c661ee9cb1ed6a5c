"""Several processes on one machine: the same losses as one process on the same global batch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from fixtures import write_noise_records
from safetensors.torch import load_file

SETTINGS = ("--device", "cpu", "--compression", "ppe", "--k", "4", "--max-steps", "10", "--learning-rate", "1e-5")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return str(write_noise_records(folder, records=24, most_words=5))


def launch(processes: int, *arguments: str, port: int = 29511) -> None:
    """`ppe-npu train`, by torchrun if there are several processes."""
    command = [sys.executable, "-m", "ppe_npu.cli", "train", *SETTINGS, "--logging-steps", "1", *arguments]
    if processes > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command = [*torchrun, "--master-port", str(port), *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(folder) -> list[float]:
    return [loss for _, loss in json.loads((folder / "summary.json").read_text())["losses"]]


def test_two_processes_learn_as_one(tiny_folder, data, tmp_path):
    """Ten steps on a global batch of 8; questions differ in length, so that a mean of means would be another loss.

    Steps are as small as in fine-tuning: Adam's first ones go by the sign of every gradient, that of rounding, too.
    """
    common = ("--model", str(tiny_folder), "--data", data)
    launch(1, *common, "--batch-size", "8", "--output", str(tmp_path / "one"))
    launch(2, *common, "--batch-size", "4", "--output", str(tmp_path / "two"))
    launch(2, *common, "--batch-size", "2", "--gradient-accumulation", "2", "--output", str(tmp_path / "four"))
    one = losses(tmp_path / "one")
    assert len(one) == 10
    assert one[-1] < one[0]
    for name in ("two", "four"):
        assert losses(tmp_path / name) == pytest.approx(one, abs=1e-5), name
        weights, expected = (load_file(tmp_path / n / "final" / "model.safetensors") for n in (name, "one"))
        assert max((weights[key] - expected[key]).abs().max().item() for key in expected) < 3e-4
