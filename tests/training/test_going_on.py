"""What a run prints: where it resumes, that it has ended, how to resume it, and plain lines without a terminal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from cut_runs import STEPS, go_on, refused, state

from ppe_npu.checkpoints.loading import quiet_transformers
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.going_on import how_to_go_on
from ppe_npu.training.loop import CompressedTrainer


@pytest.fixture
def ended(whole_run, tmp_path):
    """(settings that resume a run of two steps that has just ended, the run's result)."""
    settings = whole_run[0] | {"output": str(tmp_path / "run"), "max_steps": 2, "save_steps": 1}
    return settings | {"resume": True}, go_on(settings)


@pytest.mark.ci
def test_a_run_says_where_it_goes_on_from(cut_run, capfd):
    go_on(cut_run)
    assert f"resuming from {cut_run['output']}/checkpoint-6: step 6 of {STEPS}" in capfd.readouterr().err


def test_a_run_without_a_checkpoint_says_that_it_begins(whole_run, tmp_path, capfd):
    go_on(whole_run[0] | {"output": str(tmp_path / "new"), "max_steps": 1, "save_steps": 0, "resume": True})
    assert "contains no checkpoint to resume from: starting with step 1 of 1" in capfd.readouterr().err


@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.ci
def test_a_finished_run_stops_at_once_and_changes_nothing(ended, capfd, monkeypatch, checkpoints):
    settings, first = ended
    if not checkpoints:
        shutil.rmtree(Path(settings["output"]) / "checkpoint-1")
    before = state(settings["output"])
    monkeypatch.setattr(CompressedTrainer, "train", lambda *_, **__: pytest.fail("it trains again"))
    assert go_on(settings) == first
    assert state(settings["output"]) == before
    assert "is finished, step 2 of 2" in capfd.readouterr().err
    refused(settings, "other settings, learning_rate (0.001, now 0.0001)", learning_rate=1e-4)


@pytest.mark.ci
def test_a_finished_runs_damaged_summary_is_named(ended):
    settings, _ = ended
    file = Path(settings["output"], "summary.json")
    whole = json.loads(file.read_text())
    for change in ({"losses": 5}, {"losses": [[1]]}, {"seconds": "2"}, {"steps": None}, {"validation": [["a", 0.5]]}):
        file.write_text(json.dumps(whole | change))
        refused(settings, f"{file} is damaged ({next(iter(change))}=", "move it away")
    file.write_text(json.dumps({key: value for key, value in whole.items() if key != "skipped"}))
    refused(settings, f"{file} is damaged (it lacks skipped", "move it away")


@pytest.mark.ci
def test_a_finished_run_whose_final_is_gone_is_gone_on_with(ended):
    settings, first = ended
    shutil.rmtree(first.final)
    assert go_on(settings).losses == first.losses
    assert Path(first.final, "model.safetensors").is_file()


@pytest.mark.ci
def test_a_run_that_is_stopped_from_the_keyboard_says_how_to_go_on(whole_run, tmp_path, monkeypatch):
    step = CompressedTrainer.training_step

    def stopped(self, *args, **kwargs):
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(CompressedTrainer, "training_step", stopped)
    settings = whole_run[0] | {"output": str(tmp_path / "run"), "save_steps": 1}
    at = 0
    with pytest.raises(KeyboardInterrupt, match=r"no checkpoint was saved yet .--save-steps N"):
        go_on(settings)
    at = 2
    with pytest.raises(KeyboardInterrupt, match=f"with --resume resumes from {tmp_path}/run/checkpoint-2"):
        go_on(settings)
    (tmp_path / "run" / "checkpoint-2" / "whole.json").unlink()
    assert how_to_go_on(TrainConfig(**settings)).endswith("checkpoint-1")


@pytest.mark.ci
def test_without_a_terminal_every_log_is_one_plain_line(whole_run, tmp_path, capfd):
    settings = whole_run[0] | {"output": str(tmp_path / "run"), "max_steps": 2, "save_steps": 0}
    quiet_transformers()
    result = go_on(settings, validation_share=0.25, eval_steps=2)
    out, err = capfd.readouterr()
    for step, loss in result.losses:
        kept = re.findall(
            rf"^step {step} of 2: loss {loss:.4f}, learning rate \S+, \S+ tokens/s, (\S+%) visual", out, re.M
        )
        assert len(kept) == 1
    assert f"step 2 of 2: validation loss {result.validation[0][1]:.4f}\n" in out
    assert "\r" not in out + err, "no bar"


def test_there_is_one_percentage_and_it_is_named(whole_run, tmp_path, capfd):
    settings = {**whole_run[0], "output": str(tmp_path / "run"), "max_steps": 1, "save_steps": 0}
    from ppe_npu.training.trainer import train

    result = train(TrainConfig(**settings))
    out = capfd.readouterr().out
    shares = set(re.findall(r"[\d.]+ ?%", out)) - {"0%"}
    assert shares == {f"{result.retention:.1%}"}
    assert f"{result.retention:.1%} visual tokens kept" in out
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert f"| visual tokens kept | {result.retention:.1%}, averaged over decoder layers |" in summary
