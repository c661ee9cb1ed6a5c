"""A run's folder: other files in it stay, one run uses it at a time, and a full disk loses nothing."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from cut_runs import go_on, refused, state
from fixtures import write_noise_records

from ppe_npu.backends import device as devices
from ppe_npu.errors import FileError, InputError
from ppe_npu.training import leftovers, loop, output, trainer
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.trainer import train


def test_a_device_is_another_where_its_kind_is_here(tmp_path):
    """The device "auto" equals what it chooses, and "npu" equals "npu:1"; a device of another kind is refused."""
    here = devices.resolve("auto").type
    for before, now, same in (
        ("auto", here, True), (here, "auto", True), ("npu", "npu:1", True), ("cpu", "cuda", False),
        ("auto", "npu" if here != "npu" else "cpu", False),
    ):  # fmt: skip
        config = TrainConfig("model", "data.jsonl", str(tmp_path), device=now)
        (tmp_path / "identity.json").write_text(json.dumps(config.identity() | {"device": before}))
        with contextlib.nullcontext() if same else pytest.raises(InputError, match="other settings, device"):
            output.check_settings(config, tmp_path)


def test_a_run_that_began_where_auto_was_an_accelerator_does_not_go_on_elsewhere(tmp_path, monkeypatch):
    """Both runs ask for "auto"; the identity records which kind of device was chosen."""
    here, known = devices.resolve("auto"), {"processor": "p"}
    monkeypatch.setattr(output, "processor_marks", lambda processor: known)
    config = TrainConfig("model", "data.jsonl", str(tmp_path))
    for kind in ("cuda", here.type):
        with monkeypatch.context() as there:
            there.setattr(output.devices, "resolve", lambda name, kind=kind: torch.device(kind))
            identity, _ = output.run_identity(config, None, [], 1)
        (tmp_path / "identity.json").write_text(json.dumps(identity))
        again = f'trained with other settings, device ("{kind}", now "{here.type}"): resume with the same'
        with contextlib.nullcontext() if kind == here.type else pytest.raises(InputError, match=re.escape(again)):
            output.check_settings(config, tmp_path)


# -- what is not the run's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["resume", "overwrite"])
@pytest.mark.ci
def test_what_the_run_did_not_write_stays(whole_run, cut_run, capfd, how):
    run = Path(cut_run["output"])
    strange = [run / "checkpoint-500", run / "checkpoint-3"]
    for folder in strange:
        folder.mkdir()
        (folder / "model.safetensors").write_text("someone's work")
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "notes.md").write_text("mine")
    (run / "checkpoint-x").mkdir()
    (run / "sketch.png").write_text("mine")
    before = state(run)
    result = go_on(cut_run | {"resume": False, how: True})
    assert result.losses == whole_run[1].losses
    after = state(run)
    for name in (
        "checkpoint-500/model.safetensors",
        "checkpoint-3/model.safetensors",
        "tensorboard/notes.md",
        "sketch.png",
    ):
        assert after[str(run / name)] == before[str(run / name)]
    assert (run / "checkpoint-x").is_dir()
    told = capfd.readouterr().err
    assert all(f"{folder} was not written by this run: it is left unchanged" in told for folder in strange)
    assert (run / "final" / "model.safetensors").is_file()


def test_lists_of_other_lines_and_other_names_are_left_alone(tmp_path):
    (tmp_path / "train.json").write_text("{}")
    (tmp_path / "skipped-9.jsonl").write_text('{"id": "mine"}\n')
    (tmp_path / "skipped-0.jsonl").write_text('{"step": 1, "id": "a"}\n{"step": 5, "id": "b"}\n{"ste')
    (tmp_path / "skipped-notes.jsonl").write_text("mine")
    (tmp_path / ".skipped-0.jsonl.77.tmp").write_text("cut off")
    leftovers.tidy(tmp_path, 3)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "train.json": "{}",
        "skipped-9.jsonl": '{"id": "mine"}\n',
        "skipped-0.jsonl": '{"step": 1, "id": "a"}\n',
        "skipped-notes.jsonl": "mine",
    }
    (tmp_path / "train.json").unlink()
    with pytest.raises(InputError, match=r"skipped-0\.jsonl was not written by a run"):
        leftovers.check_owned(tmp_path)
    for number in (0, 9):
        (tmp_path / f"skipped-{number}.jsonl").unlink()
    leftovers.check_owned(tmp_path)


@pytest.mark.parametrize("name", ["skipped-0.jsonl", "final/train.json", "faults.jsonl"])
def test_data_that_a_run_would_drop_or_write_is_refused(cut_run, tmp_path, name):
    file = Path(cut_run["output"]) / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(Path(cut_run["data"]).read_text())
    link = tmp_path / "mine.jsonl"
    link.symlink_to(file)
    for data in (file, link):
        refused(cut_run | {"data": str(data), "resume": False, "overwrite": True}, "name another output")
    assert file.read_text() == Path(cut_run["data"]).read_text()


def test_a_checkpoint_of_an_earlier_edition_is_this_runs(tmp_path):
    """Its identity lacks the processor; if it counted as another run's, it would block the run that resumes."""
    (tmp_path / "identity.json").write_text('{"model": "a", "data": "b"}')
    assert output._same_run(tmp_path, {"model": "a", "data": "b", "processor": {}})
    assert not output._same_run(tmp_path, {"model": "c", "data": "b", "processor": {}})


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_what_would_be_written_over_is_refused(cut_run, how):
    run, cut_run = Path(cut_run["output"]), cut_run | {"resume": False, how: True}
    shutil.rmtree(run / "checkpoint-6")
    (run / "checkpoint-6").mkdir()
    (run / "checkpoint-6" / "model.safetensors").write_text("someone's work")
    refused(cut_run, "checkpoint-6 was not written by a run, but this run needs its name: move it away")
    shutil.rmtree(run / "checkpoint-6")
    (run / "final").mkdir()
    (run / "final" / "model.safetensors").write_text("someone's work")
    refused(cut_run, "final was not written by a run")
    shutil.rmtree(run / "final")
    (run / "train.json").write_text('[{"image": "a.png", "conversations": []}]')
    refused(cut_run, run / "train.json", "move it away")


def test_data_in_the_output_folder_is_not_written_over(whole_run, tmp_path):
    data = write_noise_records(tmp_path, 4, 2)
    assert data.name == "train.json"
    refused(whole_run[0] | {"data": str(data), "output": str(tmp_path)}, data, "name another output")


def test_validation_data_in_the_output_folder_is_not_written_over(whole_run, tmp_path):
    data = write_noise_records(tmp_path, 4, 2).rename(tmp_path / "data.json")
    refused(whole_run[0] | {"validation_data": str(data), "output": str(tmp_path)}, data, "name another output")


@pytest.mark.parametrize("name", ["skipped-1.jsonl", "data.json", "data.md", "faults.jsonl"])
def test_a_list_that_no_run_wrote_is_not_written_over(whole_run, tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}\n')
    refused(whole_run[0] | {"output": str(tmp_path)}, tmp_path / name, "move it away")


@pytest.mark.parametrize("name", [".saving", ".saving/notes.md"])
def test_what_has_the_name_of_a_checkpoint_being_saved_is_not_dropped(cut_run, name):
    file = Path(cut_run["output"]) / name
    shutil.rmtree(Path(cut_run["output"]) / ".saving", ignore_errors=True)
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    refused(cut_run, "/.saving was not written by a run", "move it away")


@pytest.mark.parametrize("linked", [False, True])
def test_curves_of_other_runs_stay(whole_run, cut_run, tmp_path, linked):
    """They stay in a folder in which no run began, and behind a link."""
    mine = tmp_path / "curves" / "events.out.tfevents.1.host"
    mine.parent.mkdir()
    mine.write_text("mine")
    run = Path(cut_run["output"]) if linked else tmp_path
    if linked:
        (run / "tensorboard").symlink_to(mine.parent)
    else:
        mine = mine.parent.rename(run / "tensorboard") / mine.name
    leftovers.drop_run(run, [])
    assert mine.read_text() == "mine"
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("name", ["final", "checkpoint-6"])
def test_a_model_that_overwrite_drops_is_refused(whole_run, tmp_path, name):
    shutil.copytree(whole_run[0]["output"], tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run" / name)
    settings = whole_run[0] | {"output": str(tmp_path / "run"), "overwrite": True}
    refused(settings | {"model": str(tmp_path / "link")}, "link would be deleted by overwriting", "name another output")


@pytest.mark.ci
def test_a_checkpoint_without_its_whole_json_is_passed_over_and_said(whole_run, cut_run, capfd):
    run = Path(cut_run["output"])
    (run / "checkpoint-6" / "whole.json").unlink()
    assert go_on(cut_run).losses == whole_run[1].losses
    assert "checkpoint-6 contains no whole.json, as its saving was interrupted: resuming from checkpoint-4" in (
        capfd.readouterr().err
    )
    shutil.rmtree(run / "final")
    for folder in loop.checkpoints(run):
        (folder / "whole.json").unlink()
    refused(cut_run, "checkpoint-6/whole.json is missing", "no other checkpoint is whole")


def test_final_that_a_kill_left_aside_comes_back(whole_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run[0]["output"], run)
    (run / "final").rename(run / ".final.99.old")
    shutil.copytree(run / ".final.99.old", run / ".final.99.tmp")
    settings = whole_run[0] | {"output": str(run)}
    with pytest.raises(InputError, match="contains an earlier run"):
        go_on(settings)
    assert (run / "final" / "model.safetensors").is_file()
    assert not [*run.glob(".final.*")]


# -- one run at a time -------------------------------------------------------------------------------------------------


def _stay(folder: Path, ready) -> None:
    with output.sole_run(folder):
        if os.fork() == 0:  # like a loader's worker, it outlives a killed parent for a while
            ready.set()
            time.sleep(20)
            os._exit(0)
        time.sleep(60)


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(whole_run, cut_run):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_stay, args=(Path(cut_run["output"]), ready))
    other.start()
    try:
        assert ready.wait(30)
        refused(cut_run, "is in use by another run")
        refused(cut_run, "is in use by another run", resume=False, overwrite=True)
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    with output.sole_run(Path(cut_run["output"])):
        refused(cut_run, "is in use by another run")
    with output.sole_run(Path(cut_run["output"])):
        pass


# -- a full disk -------------------------------------------------------------------------------------------------------


def _limited(values: dict, size: int, file: str) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        train(TrainConfig(**values), announce=False)
    except FileError as error:
        text = str(error)
        os._exit(0 if file in text and "ulimit -f" in text and "--resume" in text and "\n" not in text else 3)
    os._exit(4)


@pytest.mark.parametrize(
    ("size", "file"), [pytest.param(100_000, "model.safetensors", marks=pytest.mark.slow), (3_000_000, "optimizer.pt")]
)
@pytest.mark.ci
def test_a_checkpoint_that_cannot_be_written_is_named_and_the_run_goes_on_later(whole_run, cut_run, size, file):
    """A limit on the file size acts like a full disk: a write fails in the middle."""
    run = Path(cut_run["output"])
    shutil.rmtree(run / "checkpoint-6")
    kept = {name: value for name, value in state(run).items() if "/checkpoint-" in name}
    child = multiprocessing.get_context("fork").Process(target=_limited, args=(cut_run, size, file))
    child.start()
    child.join()
    assert child.exitcode == 0
    after = state(run)
    assert {name: after[name] for name in kept} == kept
    assert not [*(run / ".saving").iterdir()], "the half that was written takes up no room"
    assert go_on(cut_run).losses == whole_run[1].losses


@pytest.mark.ci
def test_a_failed_final_leaves_the_old_one(whole_run, cut_run, monkeypatch):
    import errno

    run = Path(cut_run["output"])
    shutil.copytree(whole_run[1].final, run / "final")
    before = {name: value for name, value in state(run).items() if "/final/" in name}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, "write_json", full)
    with pytest.raises(FileError, match=r"/run/final.* \(no space is left on its disk\): make room there"):
        go_on(cut_run)
    assert {name: value for name, value in state(run).items() if "/final" in name} == before


# -- what is counted and saved -----------------------------------------------------------------------------------------


@pytest.mark.ci
def test_records_that_broke_are_counted_once_after_a_kill(whole_run, tmp_path):
    """Killed between a skipped record and the next checkpoint, with half a line written."""
    settings = whole_run[0] | {
        "output": str(tmp_path / "run"),
        "invalid": "skip",
        "max_steps": 7,
        "save_total_limit": 9,
    }
    data = tmp_path / "data"
    data.mkdir()
    settings["data"] = str(write_noise_records(data, 12, 5))
    for number in (1, 4, 8):  # cut in half: the header can be read, the picture cannot
        file = data / f"{number}.png"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    whole = go_on(settings)
    lists = tmp_path / "run" / "skipped-0.jsonl"
    once = lists.read_text()
    steps = [json.loads(line)["step"] for line in once.splitlines()]
    assert whole.skipped == len(steps) >= 3
    first = min(step for step in steps if step > 2)
    shutil.rmtree(tmp_path / "run" / "final")
    for folder in loop.checkpoints(tmp_path / "run"):
        if loop.step_of(folder) >= first:
            shutil.rmtree(folder)
    lists.write_text(once + '{"step": 9, "id": "ha')
    resumed = go_on(settings, resume=True)
    assert resumed.losses == whole.losses
    assert resumed.skipped == whole.skipped
    assert lists.read_text() == once


@pytest.mark.parametrize("checkpointing", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.ci
def test_use_cache_is_saved_as_the_base_has_it(whole_run, tmp_path, checkpointing):
    changes = {"output": str(tmp_path), "max_steps": 2, "save_steps": 1, "gradient_checkpointing": checkpointing}
    go_on(whole_run[0] | changes)
    base, *saved = (
        json.loads((Path(folder) / "config.json").read_text())
        for folder in (whole_run[0]["model"], tmp_path / "final", tmp_path / "checkpoint-1")
    )
    assert "use_cache" not in base
    for config in saved:
        assert "use_cache" not in config
        assert config["text_config"]["use_cache"] == base["text_config"]["use_cache"]
