"""Several processes, on one machine or on two simulated ones, give one process's losses on the same global batch.

The data is mixed (text, pictures, clips), and an epoch ends in a step that its records do not fill.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from fixtures import write_mixed_records
from safetensors.torch import load_file
from tolerances import loss_near, moved_apart

SETTINGS = ("--device", "cpu", "--compression", "ppe", "--k", "4", "--max-steps", "10", "--learning-rate", "1e-5")
TRAIN = ("-m", "ppe_npu.cli", "train", *SETTINGS, "--logging-steps", "1")


@pytest.fixture(scope="module")
def common(tmp_path_factory, tiny_folder):
    data = write_mixed_records(tmp_path_factory.mktemp("data"), records=37)
    return ("--model", tiny_folder, "--data", str(data))


@pytest.fixture(scope="module")
def one(tmp_path_factory, common):
    """The run of a single process with which the others are compared."""
    folder = tmp_path_factory.mktemp("one")
    finish(start([sys.executable, *TRAIN, *common, "--batch-size", "8", "--output", str(folder)]))
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}  # only silences DeepSpeed's guess
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def finish(*processes: subprocess.Popen, seconds: int = 300) -> None:
    try:
        for process in processes:
            printed, _ = process.communicate(timeout=seconds)
            assert process.returncode == 0, printed[-3000:]
    finally:
        for process in processes:
            process.kill()


def torchrun(*arguments: str, processes: int = 2, nodes: int = 1) -> list[subprocess.Popen]:
    """Starts one launcher for each simulated machine, with this number of processes each."""
    port = str(free_port())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    where = ("--master-addr", "127.0.0.1", "--master-port", port, "--nnodes", str(nodes))
    return [start([*launcher, *where, "--node-rank", str(rank), *TRAIN, *arguments]) for rank in range(nodes)]


def losses(folder) -> list[float]:
    return [loss for _, loss in json.loads((folder / "summary.json").read_text())["losses"]]


def check_equal(folder, one) -> None:
    """Compares losses and weights. The rate is as small as in fine-tuning: Adam's first steps follow the sign of every
    gradient, even one that is only rounding."""
    expected = losses(one)
    assert len(expected) == 10
    assert expected[-1] < expected[0]
    assert losses(folder) == loss_near(expected, layers=3, steps=10)
    weights, wanted = (load_file(run / "final" / "model.safetensors") for run in (folder, one))
    assert weights.keys() == wanted.keys()
    for key, value in wanted.items():
        apart = moved_apart([1e-5] * 10, weight=value.abs().max().item())
        assert (weights[key] - value).abs().max().item() <= apart, key


@pytest.mark.slow
def test_two_machines_learn_as_one_process(one, common, tmp_path):
    """Ten steps on a global batch of 8; answers differ in length, so a mean of means would be another loss."""
    finish(*torchrun(*common, "--batch-size", "4", "--output", str(tmp_path / "two"), processes=1, nodes=2))
    check_equal(tmp_path / "two", one)


@pytest.mark.ci
def test_processes_packing_and_accumulation_together_change_nothing(one, common, tmp_path):
    asked = ("--batch-size", "2", "--global-batch", "8", "--packing", "--output", str(tmp_path / "four"))
    finish(*torchrun(*common, *asked))
    check_equal(tmp_path / "four", one)


@pytest.mark.slow
def test_deepspeeds_own_launcher_starts_it(one, common, tmp_path):
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port())]
    asked = ("--batch-size", "4", "--deepspeed", "zero2", "--output", str(tmp_path / "run"))
    finish(start([*launcher, "--module", *TRAIN[1:], *common, *asked]), seconds=900)
    check_equal(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_deepspeed_learns_as_one_process(name, one, common, tmp_path):
    """Over gloo. On a machine's first run DeepSpeed compiles its communication for CPUs, which takes minutes."""
    folder = tmp_path / name
    asked = ("--batch-size", "4", "--output", str(folder), "--deepspeed", name)
    finish(*torchrun(*common, *asked, "--save-steps", "5"), seconds=900)
    check_equal(folder, one)
    # Cut off after its checkpoint and resumed, a run gives the losses of the uninterrupted run.
    whole = losses(folder)
    (folder / "summary.json").unlink()
    finish(*torchrun(*common, *asked, "--save-steps", "5", "--resume"), seconds=900)
    assert losses(folder) == loss_near(whole, layers=3, steps=10)
