"""Standard streams that are closed or no longer read, and a working directory that was deleted."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppe_npu import cli
from ppe_npu.backends import device
from ppe_npu.errors import InputError
from ppe_npu.training import start
from ppe_npu.training.args import TrainConfig


def ended(code: str, **closed) -> subprocess.CompletedProcess:
    """Runs the code in a process of its own, which ends with the exit code that main() gave."""
    return subprocess.run([sys.executable, "-c", code], timeout=60, **closed)


MAIN = "import os, sys; from ppe_npu import cli; "


@pytest.mark.parametrize("streams", [(1,), (2,), (0, 1, 2)], ids=str)
def test_closed_streams_take_nothing_from_a_command(tmp_path, streams):
    """Files that the command opens get other descriptors, because torch's libraries print to 1 and 2."""
    inner = (
        "cli._run = lambda args: os.write(os.open('file', os.O_WRONLY | os.O_CREAT), b'data') and print('said') or 0"
    )
    shut = lambda: (os.chdir(tmp_path), [os.close(number) for number in streams])  # noqa: E731
    code = f"{MAIN}{inner}; code = cli.main(['methods']); os.write(1, b'') or os.write(2, b'noise'); sys.exit(code)"
    done = ended(code, preexec_fn=shut, env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])})
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b"data"


class Unread:
    """A pipe whose reader has gone."""

    def __init__(self, file):
        self.fileno = file.fileno

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def flush(self):
        pass


def test_a_pipe_that_nobody_reads_ends_train_as_any_command(monkeypatch, tmp_path):
    """`train` adds the names of flags to errors about settings, and must not take this for one."""
    monkeypatch.setattr("ppe_npu.training.trainer.train", lambda *_, **__: print("step 1"))
    with open(tmp_path / "out", "w") as file:
        monkeypatch.setattr("sys.stdout", Unread(file))
        assert cli.main(["train", "--model", str(tmp_path), "--data", "x", "--output", str(tmp_path / "run")]) == 141


@pytest.mark.parametrize("value", ["x", "", "-1", "1.0", "\u0661", "9" * 5000, "00x"], ids=lambda value: value[:3])
@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_what_a_launcher_says_and_is_no_number_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    read = {"RANK": device.process_rank, "WORLD_SIZE": device.process_count}[name]
    with pytest.raises(
        InputError, match=f"^environment variable {name}='.*must be a whole number of at least [01]: unset"
    ) as error:
        read()
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "said",
    [
        {"RANK": "5"},
        {"LOCAL_RANK": "2", "WORLD_SIZE": "2", "RANK": "1"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "0"},
    ],
)
def test_a_rank_of_no_process_is_named_and_nothing_is_begun(monkeypatch, tmp_path, tiny_folder, said, capfd):
    """No process would be the first one, which writes the results."""
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    name = next(iter(said))
    for command in (["train", "--data", "x"], ["eval"]):
        assert cli.main([*command, "--model", str(tiny_folder), "--output", str(tmp_path / "run")]) == 2
        assert f"environment variable {name}=" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("said", [{"LOCAL_RANK": "3"}, {"LOCAL_RANK": "3", "WORLD_SIZE": "1"}, {"LOCAL_RANK": "-1"}])
def test_a_process_alone_may_have_any_rank_on_its_machine(monkeypatch, said):
    """For example where a scheduler starts several unrelated evaluations."""
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert device.process_rank() == 0
    assert device.of_this_process(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("error", [ValueError, torch.distributed.DistNetworkError])
def test_a_group_of_processes_that_cannot_be_started_is_named(monkeypatch, error):
    def refuse(*_):
        raise error("the address is taken\nand so on")

    monkeypatch.setattr(start, "_arguments", refuse)
    words = r"of processes \(of {}\) cannot be started \(the address is taken\): start it with torchrun"
    with pytest.raises(InputError, match=words.format(2)):
        start.start_group(TrainConfig("m", ["d"], "o"), None, 1, processes=2)
    with pytest.raises(error, match="taken\n"):
        start.start_group(TrainConfig("m", ["d"], "o"), None, 1, processes=1)
    monkeypatch.setenv("LOCAL_RANK", "0")  # with it, accelerate starts a group even for one process
    with pytest.raises(InputError, match=words.format(1)):
        start.start_group(TrainConfig("m", ["d"], "o"), None, 1, processes=1)


def test_a_working_directory_that_was_deleted_is_named(tmp_path, monkeypatch, capfd):
    """Before torch is imported, whose libraries cannot find each other there."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["methods"]) == 2
    assert "the working directory cannot be read (No such file or directory): cd to one" in capfd.readouterr().err
