"""A small run, a copy of it that was cut off, and the check that resuming such a run is refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from fixtures import write_noise_records

from ppe_npu.errors import InputError
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.trainer import train

STEPS = 7


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, tiny_folder):
    """The settings of a run, and its result; its folder holds checkpoint-2, -4 and -6, the summary and final."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_noise_records(folder, records=12, most_words=5)
    settings = {
        "model": tiny_folder, "data": str(data), "output": str(folder / "run"), "device": "cpu", "max_steps": STEPS,
        "compression": {"positions": "ppe", "k": 4}, "batch_size": 2, "learning_rate": 1e-3, "save_steps": 2,
        "save_total_limit": 3, "logging_steps": 1,
    }  # fmt: skip
    return settings, train(TrainConfig(**settings), announce=False)


@pytest.fixture
def cut_run(whole_run, tmp_path):
    """Settings of a copy of the run that was cut off before its end."""
    shutil.copytree(whole_run[0]["output"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    return whole_run[0] | {"output": str(tmp_path / "run"), "resume": True}


def go_on(settings, **changes):
    return train(TrainConfig(**settings | changes), announce=False)


def refused(settings, *words, error=InputError, **changes) -> str:
    """Checks that resuming raises one line that holds the words and changes no file; returns the line."""
    before = state(settings["output"])
    with pytest.raises(error) as raised:
        go_on(settings, **changes)
    text = str(raised.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text
    assert state(settings["output"]) == before
    return text


def state(folder) -> dict[str, str]:
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".run.lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
