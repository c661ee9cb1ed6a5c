"""A run goes on from what it saved itself, whole and unchanged, or says in one line why not; nothing is lost."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures import write_noise_records
from PIL import Image

from ppe_npu.errors import FileError, InputError
from ppe_npu.models.fingerprint import BLOCK, file_digests, media_marks
from ppe_npu.training import loop, output, trainer
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.trainer import train
from ppe_npu.training.whole import check_whole, whole_record

STEPS = 7
DAMAGES = ("cut", "emptied", "zeros in the middle", "deleted", "a folder")


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_folder):
    """Settings of a run, and the run itself: checkpoint-2, -4 and -6, summary and final."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_noise_records(folder, records=12, most_words=5)
    settings = {
        "model": tiny_folder, "data": str(data), "output": str(folder / "run"), "device": "cpu", "max_steps": STEPS,
        "compression": {"positions": "ppe", "k": 4}, "batch_size": 2, "learning_rate": 1e-3, "save_steps": 2,
        "save_total_limit": 3, "logging_steps": 1,
    }  # fmt: skip
    return settings, train(TrainConfig(**settings), announce=False)


@pytest.fixture
def cut(base, tmp_path):
    """Settings of a copy of the run that was cut off before its end."""
    shutil.copytree(base[0]["output"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    return base[0] | {"output": str(tmp_path / "run"), "resume": True}


def go_on(settings, **changes):
    return train(TrainConfig(**settings | changes), announce=False)


def refused(settings, *words, error=InputError, **changes) -> str:
    """One line that holds the words, and not a file changed, made or removed."""
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


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "zeros in the middle":
        middle, width = len(content) // 2, min(64, max(len(content) // 4, 1))
        content = content[:middle] + bytes(width) + content[middle + width :]
        file.write_bytes(content)
    elif how in ("cut", "emptied"):
        file.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
    else:
        file.unlink()
        if how == "a folder":
            file.mkdir()


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", DAMAGES)
def test_every_damaged_file_is_named_and_the_last_whole_checkpoint_offered(cut, tmp_path, how):
    """The law over all files of a checkpoint, whole.json among them: see the next test for one that is gone."""
    newest = tmp_path / "run" / "checkpoint-6"
    kept = tmp_path / "kept"
    shutil.copytree(newest, kept)
    files = sorted(path.name for path in newest.iterdir())
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "identity.json"} < set(files)
    for name in files:
        if (how, name) == ("deleted", "whole.json"):
            continue
        damage(newest / name, how)
        refused(cut, newest / name, "--resume-from-checkpoint checkpoint-4")
        shutil.rmtree(newest)
        shutil.copytree(kept, newest)


@pytest.mark.parametrize("asked", ["checkpoint-4", "last-whole", "a path"])
def test_the_last_whole_checkpoint_is_used_where_asked(base, cut, capfd, asked):
    run = Path(cut["output"])
    (run / "checkpoint-6" / "optimizer.pt").unlink()
    (run / "checkpoint-2" / "config.json").unlink()
    result = go_on(cut, resume_from_checkpoint=str(run / "checkpoint-4") if asked == "a path" else asked)
    assert result.losses == base[1].losses
    assert [path.name for path in loop.checkpoints(run)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert check_whole(run / "checkpoint-6"), "it was done again"
    refused(cut, "'checkpoint-5' is not there", "checkpoint-6, checkpoint-4", resume_from_checkpoint="checkpoint-5")


def test_damaged_checkpoints_that_a_run_does_not_come_to_again_go_when_it_has_saved(base, cut):
    run = Path(cut["output"])
    for step in (4, 6):
        (run / f"checkpoint-{step}" / "optimizer.pt").unlink()
    assert go_on(cut, resume_from_checkpoint="last-whole", save_steps=5).losses == base[1].losses
    assert [path.name for path in loop.checkpoints(run)] == ["checkpoint-2", "checkpoint-5"]


def test_no_whole_checkpoint_is_said(cut):
    for folder in loop.checkpoints(cut["output"]):
        (folder / "model.safetensors").write_bytes(b"")
    refused(cut, "checkpoint-6/model.safetensors is damaged: 0 bytes of", "no other checkpoint is whole", "--overwrite")
    refused(cut, "holds no whole checkpoint", resume_from_checkpoint="last-whole")


def test_the_first_editions_checkpoints_are_checked_as_far_as_can_be(base, cut, capfd):
    run = Path(cut["output"])
    for folder in loop.checkpoints(run):
        (folder / "identity.json").unlink()
        (folder / "whole.json").write_text(json.dumps({"step": loop.step_of(folder)}))
    early = json.loads((run / "identity.json").read_text())
    del early["media_sha256"]
    (run / "identity.json").write_text(json.dumps(early))
    refused(cut, "another learning_rate (0.001, now 0.0001)", learning_rate=1e-4)
    kept = shutil.copytree(run / "checkpoint-6", run.parent / "kept")
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "model.safetensors",
        "config.json",
    ):
        for how in ("cut", "emptied", "deleted"):
            damage(run / "checkpoint-6" / name, how)
            refused(cut, "checkpoint-6/" + name.removesuffix(".pth"), "--resume-from-checkpoint checkpoint-4")
            shutil.rmtree(run / "checkpoint-6")
            shutil.copytree(kept, run / "checkpoint-6")
    assert go_on(cut).losses == base[1].losses
    told = capfd.readouterr().err
    assert "kept no list of its files" in told
    assert "whether pictures and videos have changed since cannot be told" in told


def test_folders_of_shards_and_several_processes_files_are_listed_and_checked(tmp_path):
    """As DeepSpeed and torchrun leave them."""
    folder = tmp_path / "checkpoint-3"
    shares = [f"global_step3/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
    for name in ("rng_state_0.pth", "rng_state_1.pth", "latest", *shares):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 10)
    (folder / "whole.json").write_text(json.dumps(whole_record(folder, 3)))
    assert check_whole(folder)
    for file in [path for path in folder.rglob("*") if path.is_file() and path.name != "whole.json"]:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"x")
        with pytest.raises(InputError, match=f"{file} is damaged"):
            check_whole(folder)
        file.write_bytes(content)


def test_every_byte_of_a_large_file_counts(tmp_path):
    """A file of several blocks: a change in the first, the last and at a border, and blocks that change places."""
    file = tmp_path / "large"
    with open(file, "wb") as out:
        out.truncate(2 * BLOCK + 5)
        out.write(b"first")
    found = {file_digests([file])[0]}
    for place in (0, BLOCK - 1, BLOCK, 2 * BLOCK + 4):
        with open(file, "r+b") as out:
            out.seek(place)
            before = out.read(1)
            out.seek(place)
            out.write(b"x")
        found.add(file_digests([file])[0])
        with open(file, "r+b") as out:
            out.seek(place)
            out.write(before)
    with open(file, "r+b") as out:  # the first block's content in the second
        out.write(bytes(5))
        out.seek(BLOCK)
        out.write(b"first")
    found.add(file_digests([file])[0])
    assert len(found) == 6


# -- which run it is ---------------------------------------------------------------------------------------------------


def test_another_runs_checkpoint_in_the_folder_is_refused(base, cut, tmp_path):
    """A ran on while B had been started over it: B's identity.json beside A's checkpoints."""
    other = cut | {"learning_rate": 1e-4}
    values = json.loads((Path(cut["output"]) / "identity.json").read_text()) | {"learning_rate": 1e-4}
    (Path(cut["output"]) / "identity.json").write_text(json.dumps(values))
    refused(other, "checkpoint-6 was trained with another learning_rate (0.001, now 0.0001)")
    assert go_on(cut).losses == base[1].losses


def test_base_is_compared_before_anything_is_changed(cut, tmp_path):
    import torch

    from ppe_npu.loading import load_model, load_processor

    copy = tmp_path / "model"
    shutil.copytree(cut["model"], copy)
    first = cut | {"model": str(copy), "output": str(tmp_path / "other"), "resume": False}
    go_on(first)
    model = load_model(copy)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(copy)
    load_processor(cut["model"]).save_pretrained(copy)
    refused(first, "with other weights", resume=True)


@pytest.mark.parametrize("content", ["", "[]", "null", "5", "{"])
def test_a_damaged_identity_is_named(cut, content):
    file = Path(cut["output"]) / "identity.json"
    file.write_text(content)
    refused(cut, file, "is damaged")


def test_a_changed_picture_is_named_and_a_touched_one_is_the_same(base, cut, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    settings = base[0] | {"data": str(write_noise_records(data, 12, 5)), "output": str(tmp_path / "pictures")}
    go_on(settings)
    os.utime(data / "3.png", (1, 1))
    shutil.copyfile(data / "4.png", data / "copy.png")
    os.replace(data / "copy.png", data / "4.png")
    assert go_on(settings, resume=True).losses == base[1].losses
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(data / "3.png")
    refused(settings, f"{data / '3.png'} is not what", "checkpoint-6 was trained on", "bring back", resume=True)
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(data / "5.png")
    (tmp_path / "pictures" / "media.txt").unlink()
    refused(settings, "a picture or a video is not what", resume=True)


def test_large_media_are_told_by_their_size_and_pieces_of_their_content(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 300_001, dtype=np.uint8).tobytes()
    kinds = [content, content[:-1], content[1:] + content[:1], content[:-1] + b"x", b"x" + content[1:]]
    files = [tmp_path / str(number) for number in range(len(kinds) + 1)]
    for file, given in zip(files, [*kinds, content]):
        file.write_bytes(given)
    marks = list(media_marks([str(file) for file in files]))
    assert len(set(marks)) == len(kinds)
    assert marks[0] == marks[-1]
    assert all(len(mark) == 16 for mark in marks)


# -- what is not the run's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_what_the_run_did_not_write_stays(base, cut, capfd, how):
    run = Path(cut["output"])
    strange = [run / "checkpoint-500", run / "checkpoint-3"]
    for folder in strange:
        folder.mkdir()
        (folder / "model.safetensors").write_text("someone's work")
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "notes.md").write_text("mine")
    (run / "checkpoint-x").mkdir()
    (run / "sketch.png").write_text("mine")
    before = state(run)
    result = go_on(cut | {"resume": False, how: True})
    assert result.losses == base[1].losses
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
    assert all(f"{folder} was not written by this run: it is left as it is" in told for folder in strange)
    assert (run / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_what_would_be_written_over_is_refused(cut, how):
    run, cut = Path(cut["output"]), cut | {"resume": False, how: True}
    shutil.rmtree(run / "checkpoint-6")
    (run / "checkpoint-6").mkdir()
    (run / "checkpoint-6" / "model.safetensors").write_text("someone's work")
    refused(cut, "checkpoint-6 was not written by a run, which will need its name: move it away")
    shutil.rmtree(run / "checkpoint-6")
    (run / "final").mkdir()
    (run / "final" / "model.safetensors").write_text("someone's work")
    refused(cut, "final was not written by a run")
    shutil.rmtree(run / "final")
    (run / "train.json").write_text('[{"image": "a.png", "conversations": []}]')
    refused(cut, run / "train.json", "move it away")


def test_data_in_the_output_folder_is_not_written_over(base, tmp_path):
    data = write_noise_records(tmp_path, 4, 2)
    assert data.name == "train.json"
    refused(base[0] | {"data": str(data), "output": str(tmp_path)}, data, "name another output")


def test_a_checkpoint_without_its_whole_json_is_passed_over_and_said(base, cut, capfd):
    run = Path(cut["output"])
    (run / "checkpoint-6" / "whole.json").unlink()
    assert go_on(cut).losses == base[1].losses
    assert "checkpoint-6 holds no whole.json, it was cut off while it was saved: going on from checkpoint-4" in (
        capfd.readouterr().err
    )
    shutil.rmtree(run / "final")
    for folder in loop.checkpoints(run):
        (folder / "whole.json").unlink()
    refused(cut, "checkpoint-6/whole.json is missing", "no other checkpoint is whole")


def test_final_that_a_kill_left_aside_comes_back(base, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(base[0]["output"], run)
    (run / "final").rename(run / ".final.99.old")
    shutil.copytree(run / ".final.99.old", run / ".final.99.tmp")
    settings = base[0] | {"output": str(run)}
    with pytest.raises(InputError, match="holds an earlier run"):
        go_on(settings)
    assert (run / "final" / "model.safetensors").is_file()
    assert not [*run.glob(".final.*")]


# -- one run at a time -------------------------------------------------------------------------------------------------


def _stay(folder: Path, ready) -> None:
    with output.sole_run(folder):
        if os.fork() == 0:  # as a loader's worker is: it outlives a killed parent for a while
            ready.set()
            time.sleep(20)
            os._exit(0)
        time.sleep(60)


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(base, cut):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_stay, args=(Path(cut["output"]), ready))
    other.start()
    try:
        assert ready.wait(30)
        refused(cut, "another run is writing there")
        refused(cut, "another run is writing there", resume=False, overwrite=True)
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    with output.sole_run(Path(cut["output"])):
        refused(cut, "another run is writing there")
    with output.sole_run(Path(cut["output"])):
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


@pytest.mark.parametrize(("size", "file"), [(100_000, "model.safetensors"), (3_000_000, "optimizer.pt")])
def test_a_checkpoint_that_cannot_be_written_is_named_and_the_run_goes_on_later(base, cut, size, file):
    """The limit on a file's size is met as a full disk is: by a write that fails in the middle."""
    run = Path(cut["output"])
    shutil.rmtree(run / "checkpoint-6")
    kept = {name: value for name, value in state(run).items() if "/checkpoint-" in name}
    child = multiprocessing.get_context("fork").Process(target=_limited, args=(cut, size, file))
    child.start()
    child.join()
    assert child.exitcode == 0
    after = state(run)
    assert {name: after[name] for name in kept} == kept
    assert not [*(run / ".saving").iterdir()], "the half that was written takes up no room"
    assert go_on(cut).losses == base[1].losses


def test_a_failed_final_leaves_the_old_one(base, cut, monkeypatch):
    import errno

    run = Path(cut["output"])
    shutil.copytree(base[1].final, run / "final")
    before = {name: value for name, value in state(run).items() if "/final/" in name}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, "write_json", full)
    with pytest.raises(FileError, match=r"/run/final.* \(no space is left on its disk\): make room there"):
        go_on(cut)
    assert {name: value for name, value in state(run).items() if "/final" in name} == before


# -- what is counted and saved -----------------------------------------------------------------------------------------


def test_records_that_broke_are_counted_once_after_a_kill(base, tmp_path):
    """Killed between a skipped record and the next checkpoint, with half a line written."""
    settings = base[0] | {"output": str(tmp_path / "run"), "invalid": "skip", "max_steps": 7, "save_total_limit": 9}
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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("value", [None, True, False])
def test_use_cache_is_saved_as_the_base_has_it(base, tmp_path, checkpointing, value):
    from transformers import AutoConfig

    model = tmp_path / "model"
    shutil.copytree(base[0]["model"], model)
    if value is not None:
        config = json.loads((model / "config.json").read_text())
        config["use_cache"] = config["text_config"]["use_cache"] = value
        (model / "config.json").write_text(json.dumps(config))
    changes = {"model": str(model), "output": str(tmp_path / "run"), "max_steps": 2, "save_steps": 1}
    go_on(base[0] | changes | {"gradient_checkpointing": checkpointing})
    expected = AutoConfig.from_pretrained(model)
    for folder in ("final", "checkpoint-1"):
        saved = AutoConfig.from_pretrained(tmp_path / "run" / folder)
        assert getattr(saved, "use_cache", None) == getattr(expected, "use_cache", None)
        assert saved.text_config.use_cache == expected.text_config.use_cache
        assert value is not False or saved.text_config.use_cache is False
