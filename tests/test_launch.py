"""Several processes: torchrun's own traceback does not follow the line in which a command says what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from ppe_npu.cli import launch


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [(2, 2, "process 1 ended with exit code 2"), (-9, 137, "process 1 was ended by signal 9")],
)
def test_a_failure_is_one_line_with_its_exit_code(monkeypatch, capsys, ended, code, said):
    seen = []

    def failing(arguments):
        seen.append(arguments)
        raise ChildFailedError("ppe_npu.cli", {1: ProcessFailure(1, 4321, ended, "none")})

    monkeypatch.setattr("torch.distributed.run.main", failing)
    assert launch.main(["--nproc-per-node", "2", "-m", "ppe_npu.cli", "train"]) == code
    assert seen == [["--nproc-per-node", "2", "-m", "ppe_npu.cli", "train"]]
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_what_is_a_fault_of_torchrun_itself_keeps_its_traceback(monkeypatch):
    def broken(arguments):
        raise RuntimeError("no rendezvous")

    monkeypatch.setattr("torch.distributed.run.main", broken)
    with pytest.raises(RuntimeError, match="no rendezvous"):
        launch.main([])


@pytest.mark.slow
def test_two_processes_that_are_asked_for_something_impossible(tmp_path):
    asked = [
        "train",
        "--model",
        str(tmp_path / "gone"),
        "--data",
        "x.json",
        "--output",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "ppe_npu.cli.launch", "--standalone", "--nproc-per-node", "2", "-m", "ppe_npu.cli"]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 6
