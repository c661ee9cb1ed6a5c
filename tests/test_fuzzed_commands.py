"""Command lines with one or two changes: the command does what it says, or says in one line why not."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from bounds import bounded
from fixtures import write_noise_records
from mutations import dice, thousand

from ppe_npu import cli
from ppe_npu.cli.parser import build_parser
from ppe_npu.demo import scenes

VALUES = (
    *(
        "",
        "0",
        "1",
        "2",
        "-1",
        "0.5",
        "1.0",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e-320",
        "x",
        "-",
        "--",
        "=",
        "a=b",
    ),
    *("none", "true", "x" * 300, "x" * 5000, "\udcff", "<script>", "[" * 3000, "{}", "null", "../x", "~nobody/x", "."),
    *(
        "model",
        "data",
        "data/test.jsonl",
        "records.json",
        "0.png",
        "clip.mp4",
        "runs",
        "pipe",
        "loop",
        "empty",
        "gone",
    ),
    *("config.json", "model/config.json", "org/name", "http://host/x", "a,b", "ppe", "ppe:ratio=0", "tome:k=2,ratio=x"),
    *(
        "ppe:steps=1",
        "dense:ratio=0.5",
        "qwen2_5_vl",
        "zero2",
        "last-whole",
        "checkpoint",
        "temperature=0",
        "num_beams=2",
    ),
    *("do_sample=true", "no_such=1", "layout", "docvqa", "mine.py:Mine", "mine.py:", ":", "vlmevalkit", "9" * 30, "16"),
)
ENDLESS = {"epochs", "max_steps", "max_new_tokens", "cost_rounds"}  # options whose work grows with their value
SHORT = ("-1", "0", "1", "2", "0.5", "nan", "inf", "x", "", "1e400")
TINY = ["--model", "model", "--device", "cpu"]
RUNS = {
    "train": [*TINY, "--data", "records.json", "--output", "run", "--max-steps", "1", "--batch-size", "2"],
    "data": ["--model", "model", "--data", "records.json", "--out", "survey"],
    "convert": ["--data", "records.json", "--output", "converted.jsonl"],
    "merge-lora": ["--adapter", "adapter", "--output", "merged", "--model", "model"],
    "export": ["--checkpoint", "model", "--output", "exported", "--vllm"],
    "serve": ["--model", "model", "--compression", "ppe"],
    "eval": [*TINY, "--data-root", "data", "--output", "runs", "--max-new-tokens", "1", "--cost-rounds", "0"],
    "report": ["runs"],
    "describe": [*TINY, "--image", "0.png", "--max-new-tokens", "1", "--show", "groups.png"],
    "explore": [*TINY],
    "methods": [],
    "parity": ["run"],
    "demo": ["--device", "cpu", "--output", "demo"],
    "doctor": [],
    "completion": ["bash"],
}
WEIGHTS = {"train": 6, "eval": 6, "describe": 5, "data": 4, "export": 3, "report": 3, "convert": 2}
DRAWN = [command for command in RUNS for _ in range(WEIGHTS.get(command, 1))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_folder):
    """Everything that the commands read, in one folder."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(tiny_folder, folder / "model")
    write_noise_records(folder, records=3, most_words=5).rename(folder / "records.json")
    scenes.write_split(folder / "data", "test", 1, seed=1, questions_per_image=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("ppe_npu.evaluation.report.draw", lambda comparison, path, title: path)
        assert cli.main(["eval", *RUNS["eval"], "--no-smaller-input"]) == 0
    (folder / "mine.py").write_text("class Mine:\n    modality = 'text'\n    __len__ = lambda self: 1\n")
    (folder / "config.json").write_text('{"preset": "ppe", "ratio": 0.5}')
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to("loop")
    return folder


def options(command: str) -> list[Any]:
    """A command's options, as argparse represents them."""
    commands = next(action for action in build_parser()._actions if action.choices and action.nargs == "A...")
    return [action for action in commands.choices[command]._actions if action.dest != "help"]


def changed(command: str, draw: random.Random) -> list[str]:
    """The words of a command that works, with one to three of its options added, changed or left out."""
    words = list(RUNS[command])
    for _ in range(draw.choice((1, 1, 2, 3))):
        kind = draw.random()
        if words and kind < 0.2:
            del words[draw.randrange(len(words))]
        elif words and kind < 0.5:
            at = draw.randrange(len(words))
            name = words[at - 1].removeprefix("--").replace("-", "_")
            words[at] = draw.choice(SHORT if name in ENDLESS else VALUES)
        else:
            option = draw.choice(options(command) or [None])
            if option is None:
                words.append(draw.choice(VALUES))
                continue
            flag = [draw.choice(option.option_strings)] if option.option_strings else []
            values = [str(value) for value in option.choices or ()] if draw.random() < 0.5 else []
            values = values or (SHORT if option.dest in ENDLESS else VALUES)
            count = 0 if option.nargs == 0 else draw.choice((1, 1, 2)) if option.nargs else 1
            words += flag + [draw.choice(values) for _ in range(count)]
    return words


def check(run: Any, whole: Path, place: Path, number: int) -> int:
    """Checks the law for one command line; returns its exit code."""
    draw = dice("command", number)
    command = DRAWN[number % len(DRAWN)]
    words = [command, *changed(command, draw)]
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place / "here", symlinks=True)
    os.mkfifo(place / "here" / "pipe")
    os.chdir(place / "here")
    what = (number, [word[:60] for word in words])
    with bounded(what):
        try:
            code, out, err = run(*words)
        except Exception as error:
            raise AssertionError(what) from error
    assert "Traceback" not in out + err, (what, err)
    assert "\x1b" not in out, what
    said = err.splitlines()[-1] if err.strip() else ""
    assert code in (0, 1, 2), (what, code)
    if code == 2:
        assert said.startswith("ppe-npu: error: "), (what, err)
        assert len(said) < 4000, (what, err)
    return code


@pytest.fixture
def quick(monkeypatch):
    """Leaves out what takes long or would not return, but not the messages before it."""
    from ppe_npu.backends import parity
    from ppe_npu.demo import motion, pipeline
    from ppe_npu.parity import bundle, end_to_end

    for module, name in ((parity, "run_parity"), (end_to_end, "run_end_to_end"), (bundle, "record")):
        monkeypatch.setattr(module, name, lambda *_: [])
    for module in (motion, pipeline):
        monkeypatch.setattr(module, "main", lambda args: 1)
    monkeypatch.setattr("os.execv", lambda *_: None)


@pytest.mark.usefixtures("quick", "undrawn_report")
@thousand(6)
@pytest.mark.ci
def test_a_changed_command_line_works_or_says_why_not(run, whole, tmp_path, monkeypatch, numbers):
    monkeypatch.chdir(tmp_path)
    codes = [check(run, whole, tmp_path / "copy", number) for number in numbers]
    assert {0, 2} <= set(codes) or len(codes) < 20
