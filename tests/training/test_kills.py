"""A run that is killed at any moment, even while it saves, ends as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from dying import be_alone, in_child
from fixtures import write_noise_records
from safetensors.torch import load_file

from ppe_npu.training.args import TrainConfig
from ppe_npu.training.trainer import train

STEPS = 12


def settings(folder: str, data: Path, output: Path) -> dict:
    return {
        "model": folder, "data": str(data), "output": str(output), "device": "cpu", "max_steps": STEPS,
        "compression": {"positions": "ppe", "k": 4}, "batch_size": 2, "learning_rate": 1e-3, "save_steps": 1,
        "logging_steps": 1, "group_by_length": True, "packing": True, "resume": True,
    }  # fmt: skip


def trained(values: dict):
    def work():
        torch.set_num_threads(1)
        train(TrainConfig(**values), announce=False)

    return work


def _child(values: dict) -> None:
    be_alone()
    trained(values)()
    os._exit(0)


def run(values: dict, kill_at: int | None = None, delay: float = 0.0) -> bool:
    """Trains in a child, killed `delay` seconds after it began to save step `kill_at`; returns whether it finished."""
    child = multiprocessing.get_context("fork").Process(target=_child, args=(values,))
    child.start()
    saving = Path(values["output"], ".saving", f"checkpoint-{kill_at}")
    while child.is_alive() and kill_at is not None and not saving.exists():
        time.sleep(0.0005)
    if kill_at is not None:
        time.sleep(delay)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            return False
    child.join()
    assert child.exitcode == 0
    return True


def check_kills(tiny_folder, tmp_path, kills: int, seed: int) -> None:
    data = write_noise_records(tmp_path, records=16, most_words=6)
    assert run(settings(tiny_folder, data, tmp_path / "whole"))
    draw, values, killed = random.Random(seed), settings(tiny_folder, data, tmp_path / "cut"), 0
    for step in sorted(draw.sample(range(1, STEPS), kills)):
        # No delay kills it in the middle of a save; a longer one at the save's end, or in the next step.
        killed += not run(values, step, draw.choice([0.0, draw.uniform(0, 0.1), draw.uniform(0, 1)]))
    assert killed > 0
    assert run(values)
    whole, cut = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "cut"))
    assert cut["losses"] == whole["losses"]
    assert len(whole["losses"]) == STEPS
    first, second = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not (tmp_path / "cut" / ".saving" / f"checkpoint-{STEPS}").exists()
    for checkpoint in (tmp_path / "cut").glob("checkpoint-*"):
        assert {"config.json", "compression.json", "base.json", "tokenizer_config.json", "whole.json"} <= {
            file.name for file in checkpoint.iterdir()
        }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_often_is_the_run_that_was_not(tiny_folder, tmp_path, seed):
    check_kills(tiny_folder, tmp_path, kills=8, seed=1 + seed)


# -- at every single change of the disk -------------------------------------------------------------------------------

SHORT = {"max_steps": 3, "save_total_limit": 1}


def ended(output: Path) -> tuple[set, list, dict]:
    """What a run left: file names (without an empty .saving), losses and weights."""
    losses = json.loads((output / "summary.json").read_text())["losses"]
    names = {path.relative_to(output).as_posix() for path in output.rglob("*")}
    return names - {".saving"}, losses, load_file(output / "final" / "model.safetensors")


@pytest.fixture(scope="module")
def uncut(tiny_folder, tmp_path_factory):
    """(settings, what an uninterrupted run left, how many changes of the disk it made)."""
    folder = tmp_path_factory.mktemp("uncut")
    data = write_noise_records(folder, records=16, most_words=6)
    values = settings(tiny_folder, data, folder / "run") | SHORT
    made = in_child(trained(values))
    return values, ended(folder / "run"), made


def check_killed_at(change: int, uncut, tmp_path) -> None:
    values, (names, losses, weights), made = uncut
    assert change <= made
    values = values | {"output": str(tmp_path / "run")}
    in_child(trained(values), kill_at=change)
    in_child(trained(values))
    there, again, after = ended(tmp_path / "run")
    assert there == names
    assert again == losses
    assert all(torch.equal(weights[key], after[key]) for key in weights)


@pytest.mark.parametrize("share", [0.62, pytest.param(0.97, marks=pytest.mark.slow)], ids=str)
@pytest.mark.ci
def test_killed_at_a_change_of_the_disk_it_is_the_run_that_was_not(uncut, tmp_path, share):
    check_killed_at(round(share * uncut[2]), uncut, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(8))
def test_killed_at_any_change_of_the_disk_it_is_the_run_that_was_not(uncut, tmp_path, part):
    for change in range(1 + part, uncut[2] + 1, 8):
        check_killed_at(change, uncut, tmp_path / str(change))


@pytest.mark.ci
def test_a_kill_between_saving_and_naming_loses_one_checkpoint_only(tiny_folder, tmp_path, monkeypatch):
    """Dies after writing the files of checkpoint-2, before its whole.json and its name: the run resumes from step 1."""
    from ppe_npu.training import loop

    data = write_noise_records(tmp_path, records=16, most_words=6)
    values = settings(tiny_folder, data, tmp_path / "run") | {"max_steps": 3}
    original = loop.write_json

    def dies(path, value):
        if Path(path).name == "whole.json" and value["step"] == 2:
            raise KeyboardInterrupt  # everything else is written, but the folder does not have its name yet
        return original(path, value)

    monkeypatch.setattr(loop, "write_json", dies)
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(**values), announce=False)
    assert (tmp_path / "run" / ".saving" / "checkpoint-2").is_dir()
    assert [path.name for path in loop.checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    monkeypatch.setattr(loop, "write_json", original)
    assert train(TrainConfig(**values), announce=False).steps == 3
