"""The motion task: clips by seed, answers that no frame alone holds, files that lose nothing, the report's words."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from subprocess import PIPE

import document_motion
import numpy as np
import psutil
import pytest
from command_line import refused

from ppe_npu.checkpoints.loading import load_processor
from ppe_npu.data.videos import load_video
from ppe_npu.demo import clips, motion
from ppe_npu.evaluation import benchmarks
from ppe_npu.files import write_text
from ppe_npu.training.data import read_records

ASKED = {"tokens": 1, "steps": 600, "clips": 32}
MARKS = ((document_motion.start(1), 0), (document_motion.END, 1))


def made(count, seed=0):
    rng = np.random.default_rng(seed)
    return [clips.make_clip(rng) for _ in range(count)]


def test_the_answers_are_what_the_pixels_do():
    """Derived from the pixels alone: from what differs between a frame and the first one."""
    side, half = clips.SQUARES, clips.SQUARES // 2
    for clip in made(200):
        corners = clip.pixels(2)[:, ::2, ::2, 0]
        assert (corners.repeat(2, 1).repeat(2, 2)[..., None] == clip.pixels(2)).all()
        assert set(np.unique(corners)) <= {clips.DARK, clips.LIGHT}
        other = corners != corners[0]
        count = other.sum((1, 2))
        assert str((count == side**2).sum()) == clip.answers["times"]
        partly = np.flatnonzero(count == side)
        lines = {"vertical": other.all(1), "horizontal": other.all(2)}  # of each frame [FRAMES, SQUARES]
        walk = [t for t in partly if (lines["vertical"] | lines["horizontal"])[t].any()]
        (quarter,) = set(partly) - set(walk)
        row, column = (int(places.mean() > half - 0.5) for places in np.nonzero(other[quarter]))
        assert other[quarter, row * half :, column * half :][:half, :half].all()
        assert ("north", "south")[row] + ("west", "east")[column] == clip.answers["changed"]
        axis = "vertical" if lines["vertical"][walk].any() else "horizontal"
        order = lines[axis][walk].argmax(1).tolist()
        names = {"vertical": ("right", "left"), "horizontal": ("down", "up")}[axis]
        assert order in (list(range(side)), list(range(side))[::-1])
        assert names[order[0] > order[-1]] == clip.answers["towards"]


def test_every_answer_comes_about_as_often_as_the_others():
    drawn = made(600)
    for kind, answers in clips.ANSWERS.items():
        counts = [sum(clip.answers[kind] == answer for clip in drawn) for answer in answers]
        assert min(counts) > 0.7 * len(drawn) / len(answers)


def test_no_frame_alone_holds_an_answer():
    """Whatever a frame shows, equally likely clips with other answers show the same in that frame."""
    clip, others = made(1)[0], made(20, seed=1)
    for other in others:
        for frame in range(clips.FRAMES):
            board = clip.board ^ clip.changes[frame] ^ other.changes[frame]
            same = dataclasses.replace(other, board=board)
            assert (same.pixels(1)[frame] == clip.pixels(1)[frame]).all()
    assert all(len({other.answers[kind] for other in others}) == len(clips.ANSWERS[kind]) for kind in clips.ANSWERS)


def test_a_split_is_the_same_bytes_by_seed_and_is_read_as_it_was_drawn(tmp_path):
    for name in "ab":
        clips.write_split(tmp_path / name, "test", 3, seed=5, square=4)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 4
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    for clip, record in zip(made(3, seed=5), read_records(tmp_path / "a" / "test.jsonl")):
        frames = load_video(record.videos[0], multiple=1).frames.permute(0, 2, 3, 1).numpy()
        assert (frames == clip.pixels(4)).all()
    asked = benchmarks.load("motion", tmp_path / "a")
    assert len(asked) == 9
    assert {sample["type"] for sample in (asked[n] for n in range(9))} == set(clips.QUESTION_TYPES)
    assert asked.score(asked[0]["GT"], asked[0]) == 1.0
    assert asked.score(asked[0]["prompt"], asked[0]) == 0.0


def result(name, seed, low, high):
    found = {"accuracy": (low + high) / 2, "low": low, "high": high, "count": 9}
    types = dict.fromkeys(clips.QUESTION_TYPES, found)
    return {"name": name, "seed": seed, "types": types, "accuracy": found, "told": 0.9 + seed / 100, **ASKED}


def test_the_report_says_ahead_only_where_intervals_do_not_touch():
    ahead = [result(motion.FRAMEWISE, 0, 0.2, 0.3), result("PVC", 0, 0.31, 0.5)]
    touching = [result(motion.FRAMEWISE, 1, 0.2, 0.4), result("PVC", 1, 0.31, 0.5)]
    behind = [result(motion.FRAMEWISE, 2, 0.6, 0.7), result("PVC", 2, 0.31, 0.5)]
    said = motion.findings(ahead + touching + behind)
    assert (
        "all: PVC minus frame by frame +0.155, +0.105, -0.245; clearly ahead on 1 of 3 seeds, clearly behind on 1"
        in said
    )
    assert "**PVC is not clearly ahead on every seed** (on 1 of 3, over all questions)" in said
    again = [
        result(name, seed, low, low + 0.1) for seed in (1, 2) for name, low in ((motion.FRAMEWISE, 0), ("PVC", 0.5))
    ]
    assert "**PVC is clearly ahead on every seed** (on 3 of 3" in motion.findings(ahead + again)


def test_the_report_says_who_has_learned_anything():
    """A question's chance is one in its number of answers; over all, it depends on how often each was asked."""
    idle, apt = result(motion.FRAMEWISE, 0, 0.2, 0.3), result("PVC", 0, 0.3, 0.5)
    said = motion.findings([idle, apt])
    assert f"on which {motion.FRAMEWISE} is above chance: towards 0, times 0, changed 0, all 0." in said
    assert "on which PVC is above chance: towards 1, times 0, changed 1, all 1." in said
    assert motion.table([idle, apt]).splitlines()[-1] == "| chance | | 0.250 | 0.333 | 0.250 | 0.278 |"
    idle["types"]["times"] = idle["types"]["times"] | {"count": 18}
    assert motion.table([idle, apt]).splitlines()[-1] == "| chance | | 0.250 | 0.333 | 0.250 | 0.292 |"


def test_the_page_is_given_the_table_and_the_findings():
    other = document_motion.start(64) + "another table\n" + document_motion.END
    page = document_motion.PAGE.read_text(encoding="utf-8").partition(document_motion.start(64))[0] + other
    rows = [result(motion.FRAMEWISE, 0, 0.1, 0.2), result("PVC", 0, 0.8, 0.9)]
    found = document_motion.written(page, rows)
    assert motion.table(rows) in found
    assert " ".join(motion.findings(rows).split()) in " ".join(found.split())
    assert document_motion.written(found, rows) == found
    kept = [text.split(mark, 1)[at] for text in (page, found) for mark, at in MARKS]
    assert kept[:2] == kept[2:]
    with pytest.raises(SystemExit, match="no place for 16 tokens per frame"):
        document_motion.written(page, [row | {"tokens": 16} for row in rows])
    with pytest.raises(SystemExit, match="run the demo again"):
        document_motion.written(page, [{key: row[key] for key in row if key not in ASKED} for row in rows])


@pytest.mark.ci
@pytest.mark.parametrize("shown", motion.SHOWN.values(), ids=motion.SHOWN)
def test_a_frame_s_tokens_tell_its_squares_before_any_training(tmp_path, shown):
    motion.build(tmp_path / "start", 0, shown)
    assert motion.squares_told(tmp_path / "start", shown, 1_000 if shown is motion.SMALL else 100) > 0.95
    assert "reads at least 91.0% of the squares" in motion.findings(
        [result(name, seed, 0, 1) for seed in (1, 2) for name in motion.NAMES]
    )


@pytest.mark.slow
def test_the_comparison_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(motion, "SPLITS", {"train": (8, 1), "test": (4, 2)})
    short = dataclasses.replace(motion.RECIPE, warmup_steps=1, batch_size=4, logging_steps=1)
    monkeypatch.setattr(motion, "RECIPE", short)
    monkeypatch.setattr(motion, "SHOWN", {1: dataclasses.replace(motion.SMALL, steps=4)})
    asked = argparse.Namespace(output=str(tmp_path), device="cpu", seeds=1, tokens=None)
    assert motion.main(asked) == 0
    before = (tmp_path / "report.md").read_text()
    made = (tmp_path / "seed0" / "pvc" / "final" / "model.safetensors").stat().st_mtime_ns
    assert motion.main(asked) == 0
    assert (tmp_path / "seed0" / "pvc" / "final" / "model.safetensors").stat().st_mtime_ns == made
    assert before.splitlines()[2:8] == (tmp_path / "report.md").read_text().splitlines()[2:8]


_WORKER = """
import contextlib, os, sys, time
from ppe_npu.demo.running import worker_pool

if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr), worker_pool(1) as pool:
        pool.submit(os.write, 1, b"a library's own line\\n").result()
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 100).result()
"""


@pytest.mark.slow
def test_a_worker_prints_where_its_parent_does_and_ends_with_it():
    with subprocess.Popen([sys.executable, "-c", _WORKER], stdout=PIPE, stderr=PIPE, text=True) as parent:
        lines = [parent.stderr.readline() for _ in range(2)]
        parent.kill()
        assert parent.stdout.read() == ""
    assert lines[0] == "a library's own line\n"
    worker, waited = psutil.Process(int(lines[1])) if psutil.pid_exists(int(lines[1])) else None, 20
    assert worker is None or not psutil.wait_procs([worker], timeout=waited)[1]


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (("--motion",), "runs/motion"),
        (("--motion", "--tokens", "1"), "runs/motion"),
        (("--motion", "--tokens", "64"), "runs/motion-64"),
        ((), "runs/demo"),
    ],
)
def test_the_two_tasks_write_into_folders_of_their_own(run, monkeypatch, options, folder):
    asked = []
    monkeypatch.setattr(motion, "main", asked.append)
    monkeypatch.setattr("ppe_npu.demo.pipeline.main", asked.append)
    assert run("demo", *options)[0] == 0
    assert asked[0].output == folder


def test_json_is_the_file_of_results_and_nothing_else(run, tmp_path, monkeypatch):
    def finished(args):
        print("a table")
        write_text(tmp_path / "data" / "base.recipe.json", "[]")
        (tmp_path / ("methods.json" if args.methods else "results.json")).write_text(f'["{args.methods}"]')

    monkeypatch.setattr("ppe_npu.demo.pipeline.main", finished)
    for more, said in (((), ["None"]), (("--methods", "tome"), ["['tome']"])):
        code, out, err = run("demo", "--output", tmp_path, "--json", *more)
        assert (code, json.loads(out)) == (0, said)
        assert err == "a table\n"


@pytest.mark.parametrize("motion", [True, False])
def test_one_folder_does_not_hold_both_demos(run, tmp_path, motion):
    """Their data, models and results have the same names, so each would continue from the other's."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{'base' if motion else 'train'}.recipe.json").write_text("[1]")
    result = run("demo", *(["--motion"] if motion else []), "--output", tmp_path, "--device", "cpu")
    refused(result, tmp_path, "name another folder for the one with " + ("clips" if motion else "scenes"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("place", ["seed0/base/thesis.tex", "report.md", "data/test.jsonl"])
def test_a_demo_takes_no_folder_that_holds_something_else(run, tmp_path, monkeypatch, place):
    """It would overwrite or drop it."""
    monkeypatch.setattr("ppe_npu.demo.pipeline.main", lambda args: pytest.fail("it began"))
    write_text(tmp_path / place, "mine")
    refused(run("demo", "--output", tmp_path), tmp_path, "but no demo: name a new folder")
    assert (tmp_path / place).read_text() == "mine"


def test_a_demo_that_was_stopped_while_it_drew_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ppe_npu.demo.pipeline.main", lambda args: 0)
    for folder in ("data/images", "data/clips", ".cache"):
        (tmp_path / folder).mkdir(parents=True)
    assert run("demo", "--output", tmp_path)[0] == 0


def test_one_folder_does_not_hold_clips_of_both_sizes(run, tmp_path):
    """Their models have the same names: each run would drop the other's."""
    write_text(tmp_path / "data" / "train.recipe.json", json.dumps([*motion.SPLITS["train"], motion.SMALL.name]))
    result = run("demo", "--motion", "--tokens", "64", "--output", tmp_path, "--device", "cpu")
    refused(result, tmp_path, "holds clips of board, not of board-64: name another folder as output")


def test_tokens_of_a_frame_are_of_the_motion_demo(run, tmp_path):
    refused(run("demo", "--tokens", "64", "--output", tmp_path), "--tokens 64 needs --motion")


def test_a_frame_has_as_many_tokens_as_it_is_asked_for(tmp_path):
    """Counted by the processor that the models are trained with."""
    for count, shown in motion.SHOWN.items():
        clips.write_split(tmp_path / str(count), "test", 1, 5, shown.square)
        motion.build(tmp_path / shown.name, 0, shown)
        video = load_video(next((tmp_path / str(count) / "clips").iterdir()), multiple=1)
        processor = load_processor(tmp_path / shown.name)
        found = processor.video_processor(video.frames, return_tensors="pt", do_sample_frames=False)
        assert found["video_grid_thw"].tolist() == [[clips.FRAMES, shown.patches, shown.patches]]
        assert shown.patches**2 // shown.merge**2 == count
