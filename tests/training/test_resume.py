"""A run resumes from its own whole and unchanged checkpoint, or says in one line why not; nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cut_runs import go_on, refused
from fixtures import write_noise_records
from PIL import Image

from ppe_npu.models.fingerprint import BLOCK, file_digests, media_marks
from ppe_npu.training import loop, output, trainer
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.whole import check_whole

DAMAGES = (
    "cut",
    "zeros in the middle",
    "deleted",
    *(pytest.param(how, marks=pytest.mark.slow) for how in ("emptied", "a folder")),
)


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
def test_every_damaged_file_is_named_and_the_last_whole_checkpoint_offered(cut_run, tmp_path, how):
    """Every file of a checkpoint, including whole.json. test_run_folder.py deletes whole.json itself."""
    newest = tmp_path / "run" / "checkpoint-6"
    kept = tmp_path / "kept"
    shutil.copytree(newest, kept)
    files = sorted(path.name for path in newest.iterdir())
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "identity.json"} < set(files)
    for name in files:
        if (how, name) == ("deleted", "whole.json"):
            continue
        damage(newest / name, how)
        refused(cut_run, newest / name, "--resume-from-checkpoint checkpoint-4")
        shutil.rmtree(newest)
        shutil.copytree(kept, newest)


@pytest.mark.parametrize(
    "asked", ["last-whole", *(pytest.param(way, marks=pytest.mark.slow) for way in ("checkpoint-4", "a path"))]
)
def test_the_last_whole_checkpoint_is_used_where_asked(whole_run, cut_run, capfd, asked):
    run = Path(cut_run["output"])
    (run / "checkpoint-6" / "optimizer.pt").unlink()
    (run / "checkpoint-2" / "config.json").unlink()
    result = go_on(cut_run, resume_from_checkpoint=str(run / "checkpoint-4") if asked == "a path" else asked)
    assert result.losses == whole_run[1].losses
    assert [path.name for path in loop.checkpoints(run)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert check_whole(run / "checkpoint-6"), "it was done again"
    refused(
        cut_run, "'checkpoint-5' does not exist", "checkpoint-6, checkpoint-4", resume_from_checkpoint="checkpoint-5"
    )


def test_damaged_checkpoints_that_a_run_does_not_come_to_again_go_when_it_has_saved(whole_run, cut_run):
    run = Path(cut_run["output"])
    for step in (4, 6):
        (run / f"checkpoint-{step}" / "optimizer.pt").unlink()
    assert go_on(cut_run, resume_from_checkpoint="last-whole", save_steps=5).losses == whole_run[1].losses
    assert [path.name for path in loop.checkpoints(run)] == ["checkpoint-2", "checkpoint-5"]


def test_no_whole_checkpoint_is_said(cut_run):
    for folder in loop.checkpoints(cut_run["output"]):
        (folder / "model.safetensors").write_bytes(b"")
    refused(
        cut_run,
        "checkpoint-6/model.safetensors is damaged: it has 0 bytes instead of",
        "no other checkpoint is whole",
        "--overwrite",
    )
    refused(cut_run, "contains no whole checkpoint", resume_from_checkpoint="last-whole")


@pytest.mark.ci
def test_the_first_editions_checkpoints_are_checked_as_far_as_can_be(whole_run, cut_run, capfd):
    run = Path(cut_run["output"])
    for folder in loop.checkpoints(run):
        (folder / "identity.json").unlink()
        (folder / "whole.json").write_text(json.dumps({"step": loop.step_of(folder)}))
    early = json.loads((run / "identity.json").read_text())
    del early["media_sha256"]
    (run / "identity.json").write_text(json.dumps(early))
    refused(cut_run, "other settings, learning_rate (0.001, now 0.0001)", learning_rate=1e-4)
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
            refused(cut_run, "checkpoint-6/" + name.removesuffix(".pth"), "--resume-from-checkpoint checkpoint-4")
            shutil.rmtree(run / "checkpoint-6")
            shutil.copytree(kept, run / "checkpoint-6")
    assert go_on(cut_run).losses == whole_run[1].losses
    told = capfd.readouterr().err
    assert "has no list of its files" in told
    assert "whether pictures and videos have changed is not known" in told


def test_every_byte_of_a_large_file_counts(tmp_path):
    """The digest changes with a byte of the first block, the last one or at a border, and if blocks change places."""
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


def test_another_runs_checkpoint_in_the_folder_is_refused(whole_run, cut_run, tmp_path):
    """Run A kept running after run B had been started over it: B's identity.json lies beside A's checkpoints."""
    other = cut_run | {"learning_rate": 1e-4}
    values = json.loads((Path(cut_run["output"]) / "identity.json").read_text()) | {"learning_rate": 1e-4}
    (Path(cut_run["output"]) / "identity.json").write_text(json.dumps(values))
    refused(other, "checkpoint-6 was trained with other settings, learning_rate (0.001, now 0.0001)")
    assert go_on(cut_run).losses == whole_run[1].losses


@pytest.mark.parametrize(
    "spelling", ["..", "moved", *(pytest.param(o, marks=pytest.mark.slow) for o in ("relative", "link"))]
)
@pytest.mark.ci
def test_a_run_goes_on_however_its_paths_are_spelled(whole_run, cut_run, tmp_path, monkeypatch, capfd, spelling):
    """What counts is the content at the paths: weights, records and media files."""
    model, data = Path(cut_run["model"]), Path(cut_run["data"]).parent
    monkeypatch.chdir(data)
    start = {"..": f"{data}/../{data.name}", "relative": f"../{data.name}"}.get(spelling, str(tmp_path / "data"))
    if spelling == "moved":
        shutil.copytree(model, tmp_path / "model")
        shutil.copytree(data, start, ignore=shutil.ignore_patterns("run"))
    elif spelling == "link":
        (tmp_path / "model").symlink_to(model)
        Path(start).symlink_to(data)
    else:
        (tmp_path / "model").symlink_to(model / ".." / model.name)
    again = cut_run | {"model": str(tmp_path / "model"), "data": f"{start}/train.json"}
    assert go_on(again).losses == whole_run[1].losses
    assert "resuming from" in capfd.readouterr().err
    if spelling == "moved":
        records = json.loads(Path(again["data"]).read_text())
        Path(again["data"]).write_text(json.dumps(records[::-1]))
        refused(again, "trained with other settings, data (", "records (")


@pytest.mark.parametrize("change", ["template", "mean", "size", "vocabulary"])
def test_another_processor_is_refused(cut_run, monkeypatch, change):
    """The processor's files lie beside the base's weights, where they may have been changed since."""
    processor = trainer.load_processor(cut_run["model"])
    if change == "template":
        processor.chat_template += "{# other #}"
    elif change == "mean":
        processor.image_processor.image_mean = [0.25, 0.5, 0.5]
    elif change == "size":
        processor.video_processor.size["longest_edge"] += 1
    else:
        processor.tokenizer.add_tokens(["fjord"])
    monkeypatch.setattr(trainer, "load_processor", lambda *_: processor)
    refused(cut_run, "checkpoint-6 was trained with other settings, processor")


@pytest.mark.ci
def test_base_is_compared_before_anything_is_changed(cut_run, tmp_path):
    import torch

    from ppe_npu.checkpoints.loading import load_model, load_processor

    copy = tmp_path / "model"
    shutil.copytree(cut_run["model"], copy)
    first = cut_run | {"model": str(copy), "output": str(tmp_path / "other"), "resume": False}
    go_on(first)
    model = load_model(copy)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(copy)
    load_processor(cut_run["model"]).save_pretrained(copy)
    refused(first, "with other weights", resume=True)


@pytest.mark.parametrize("content", ["", "[]", "null", "5", "{"])
def test_a_damaged_identity_is_named(cut_run, content):
    file = Path(cut_run["output"]) / "identity.json"
    file.write_text(content)
    refused(cut_run, file, "is damaged")


@pytest.mark.ci
def test_a_changed_picture_is_named_and_a_touched_one_is_the_same(whole_run, cut_run, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    settings = whole_run[0] | {"data": str(write_noise_records(data, 12, 5)), "output": str(tmp_path / "pictures")}
    go_on(settings)
    os.utime(data / "3.png", (1, 1))
    shutil.copyfile(data / "4.png", data / "copy.png")
    os.replace(data / "copy.png", data / "4.png")
    assert go_on(settings, resume=True).losses == whole_run[1].losses
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(data / "3.png")
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(data / "5.png")
    refused(
        settings,
        f"{data / '3.png'} (and 1 more file) is not what",
        "checkpoint-6 was",
        "restore what was there",
        resume=True,
    )
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


# -- files of another kind ---------------------------------------------------------------------------------------------

DEEP = "[" * 100_000  # JSON so deep that Python's parser raises a RecursionError


@pytest.mark.parametrize("name", ["train.json", "identity.json", "summary.json"])
def test_a_runs_own_file_of_another_kind_is_named_at_once(cut_run, name):
    """Also a named pipe, on which reading would wait for a writer."""
    file = Path(cut_run["output"], name)
    file.write_text(DEEP)
    refused(cut_run, file, "nested too deeply", "move it away")
    file.unlink()
    os.mkfifo(file)
    refused(cut_run, file, "not a regular file", "move it away")


@pytest.mark.parametrize("name", ["whole.json", "identity.json", "base.json", "trainer_state.json"])
def test_a_checkpoints_file_nested_too_deeply_is_named(cut_run, name):
    file = Path(cut_run["output"], "checkpoint-6", name)
    file.write_text(DEEP)
    refused(cut_run, file, "--resume-from-checkpoint checkpoint-4")


def test_a_list_of_media_that_is_no_text_keeps_no_changed_picture_from_being_noticed(cut_run, whole_run):
    Path(cut_run["output"], "media.txt").write_bytes(b"\xff\xfe\n")
    picture = next(Path(whole_run[0]["data"]).parent.glob("*.png"))
    before = picture.read_bytes()
    try:
        Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(picture)
        refused(cut_run, "not what", "was trained on")
    finally:
        picture.write_bytes(before)


@pytest.mark.parametrize(
    ("save_steps", "left"), [(2, ["checkpoint-6"]), (0, ["checkpoint-2", "checkpoint-4", "checkpoint-6"])]
)
def test_what_a_killed_run_was_about_to_drop_is_dropped_by_the_one_that_goes_on(cut_run, save_steps, left):
    """The killed run had already named its new checkpoint. A run that saves no checkpoints drops none."""
    config = TrainConfig(**cut_run | {"save_total_limit": 1, "save_steps": save_steps})
    output.begin_output(config, Path(config.output, "checkpoint-6"), 7, {}, [])
    assert [folder.name for folder in loop.checkpoints(config.output)] == left
