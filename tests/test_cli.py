"""ppe-npu: every command does its work, and every mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import refused

from ppe_npu import cli
from ppe_npu.cli.parser import build_parser
from ppe_npu.demo import scenes


@pytest.mark.skipif("ASCEND_EMULATOR" in os.environ, reason="there is an NPU, if an emulated one")
@pytest.mark.parametrize("command", ["describe", "train", "eval", "parity"])
def test_a_device_that_is_not_there_is_said_first(run, tiny_folder, command, write_image):
    more = ["--model", tiny_folder, "--image", write_image("a.png")] if command == "describe" else []
    refused(run(command, *more, "--device", "npu"), "npu", "torch_npu")
    refused(run(command, *more, "--device", "tpu"), "tpu")


@pytest.mark.parametrize(
    "flags",
    [("train", "--output"), ("train", "--model"), ("train", "--data"), ("eval", "--model"), ("data", "--out")],
)
def test_an_empty_text_is_not_the_default(run, tiny_folder, tmp_path, monkeypatch, flags):
    """For example from an unset variable: a run of another model, or into another folder, would begin."""
    monkeypatch.chdir(tmp_path)
    command, flag = flags
    needed = ["--model", tiny_folder, "--data", "none.jsonl"] if command == "data" else []
    refused(run(command, *needed, flag, ""), f"{flag} '' is an empty string", "leave it out")
    assert not list(tmp_path.iterdir())


# -- train and eval ----------------------------------------------------------------------------------------------------


def test_train_and_eval_of_a_given_model(run, tiny_folder, tmp_path):
    for name, count in (("train", 8), ("test", 3)):
        scenes.write_split(tmp_path / "data", name, count, seed=1, questions_per_image=3)
    asked = ["--data", tmp_path / "data" / "train.jsonl", "--output", tmp_path / "run", "--device", "cpu"]
    settings = ["--max-steps", 2, "--batch-size", 4, "--compression", "ppe", "--k", 4, "--learning-rate", 0.001]
    code, out, err = run("train", "--model", tiny_folder, *asked, *settings)
    assert code == 0, err
    assert "2 steps of 4 (4 per forward x 1)" in out
    assert str(tmp_path / "run" / "final") in out
    where = ["--model", tmp_path / "run" / "final", "--data-root", tmp_path / "data", "--output", tmp_path / "eval"]
    asked = ["--compression", "dense", "ppe", "--ratio", 0.25, "--k", 4, "--max-new-tokens", 2, "--device", "cpu"]
    code, out, err = run("eval", *where, *asked, "--cost-rounds", 0)
    assert code == 0, err
    assert "| dense |" in out
    assert "| ppe k=4 0.25 |" in out
    assert "| ppe k=4 0.25 |" in (tmp_path / "eval" / "report.md").read_text()
    assert (tmp_path / "eval" / "report.png").is_file()


@pytest.mark.ci
def test_train_and_eval_without_arguments(run, tmp_path, monkeypatch):
    from ppe_npu.cli import train as commands

    monkeypatch.chdir(tmp_path)
    refused(run("eval"), "runs/train/final does not exist", "ppe-npu train")
    monkeypatch.setattr(commands, "_TRAIN_IMAGES", 8)
    monkeypatch.setattr(commands, "_TEST_IMAGES", 2)
    monkeypatch.setattr(commands, "_QUESTIONS", 3)
    monkeypatch.setattr(commands, "_BATCH", 4)
    monkeypatch.setattr("ppe_npu.cli.costs.PROMPTS", 2)
    monkeypatch.setattr("ppe_npu.evaluation.interleaving.MOST", 1)  # a busy machine would ask for more rounds
    for _ in range(2):  # a second run replaces the first
        code, _, err = run("train", "--max-steps", 2)
        assert code == 0, err
    code, out, err = run("eval")
    assert code == 0, err
    assert out.index("| dense |") < out.index("| ppe k=4 0.45 |")  # the others' scores are given as shares of its score
    assert "compression dpc_knn-ppe-k4-nearest-raster-0.45 is the one in" in err
    assert (tmp_path / "runs" / "eval" / "report.md").is_file()


def test_train_refuses(run, tiny_folder, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"conversations": [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "x"}]}\n')
    train = ["train", "--device", "cpu", "--output", tmp_path / "run", "--compression", "keep_one"]
    refused(run(*train, "--model", tiny_folder), "--data is missing")
    refused(run(*train, "--data", data), "--model is missing")
    refused(run(*train, "--model", tiny_folder, "--data", data), "d.jsonl line 1", "1 <image> for 0 image")
    refused(run(*train, "--model", tiny_folder, "--data", tmp_path / "none.json"), "none.json")
    refused(run(*train, "--model", tmp_path, "--data", data), "config.json")
    refused(run(*train, "--model", tiny_folder, "--data", data, "--batch-size", 0), "batch_size=0")
    refused(run(*train, "--batch-size", "many"), "many")


def test_data_prints_the_survey_and_says_by_its_exit_code_whether_all_can_be_used(
    run, tiny_folder, write_image, tmp_path
):
    image, talk = write_image("a.png"), [{"from": "human", "value": "<image>row"}, {"from": "gpt", "value": "3"}]
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"id": "good", "image": image, "conversations": talk}))
    asked = ["data", "--model", tiny_folder, "--data", file, "--ratio", 0.25, "--k", 2]
    code, out, err = run(*asked)
    assert code == 0, err
    assert "1 records can be used, 0 cannot" in out
    assert "| image | 1 | 46 | 19 | 36 | 9 | 2 |" in out
    code, out, err = run(*asked, "--max-length", 18, "--out", tmp_path / "out")
    assert code == 1, err
    assert "too long: 19 tokens after compression, max_length 18" in out
    assert json.loads((tmp_path / "out" / "faults.jsonl").read_text())["id"] == "good"
    assert out.startswith((tmp_path / "out" / "data.md").read_text())
    refused(run(*asked, "--max-length", 0), "max_length=0")
    refused(run(*asked[:5], "--compression", "ppe", "--k", 9), "k=9")
    refused(run("data", "--model", tiny_folder), "--data")


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_parity_prints_its_table_and_fails_with_a_row(run, monkeypatch):
    from types import SimpleNamespace

    from ppe_npu.backends import parity
    from ppe_npu.parity import bundle, end_to_end

    seen, good, bad = [], SimpleNamespace(ok=True), SimpleNamespace(ok=False)

    def gives(what, *rows):
        return lambda *args: seen.append((what, *args)) or list(rows)

    monkeypatch.setattr(parity, "format_table", lambda rows: f"{len(rows)} rows")
    monkeypatch.setattr(parity, "run_parity", gives("operators", good))
    monkeypatch.setattr(end_to_end, "run_end_to_end", gives("model", good, good))
    assert run("parity", "--device", "cpu", "--dtypes", "fp32")[:2] == (0, "3 rows\n")
    cpu = torch.device("cpu")
    assert seen == [("operators", cpu, ("fp32",)), ("model", cpu, ("fp32",))]
    monkeypatch.setattr(end_to_end, "run_end_to_end", gives("model", good, bad))
    assert run("parity", "--device", "cpu")[0] == 1
    monkeypatch.setattr(bundle, "record", gives("record", good))
    monkeypatch.setattr(bundle, "check", gives("check", bad))
    assert run("parity", "record", "--device", "cpu", "--out", "here")[0] == 0
    for words in (("there", "--device", "cpu"), ("--device", "cpu", "there")):
        assert run("parity", "check", *words)[0] == 1
    assert seen[-3:] == [("record", cpu, "here"), *[("check", "there", cpu)] * 2]
    refused(run("parity", "--device", "cpu", "--dtypes", "fp8"), "fp8")
    refused(run("parity", "record", "--device", "cpu"), "record --out FOLDER")
    refused(run("parity", "check", "--device", "cpu"), "name the bundle's folder")
    refused(run("parity", "--out", "x", "--device", "cpu"), "record --out FOLDER")


def test_a_long_argument_is_not_repeated_in_full(run):
    for words, remedy in (
        (("--ratio", "x" * 5000), "--help"),
        (("--dtype", "x" * 5000), "'bf16'"),
        (("x" * 5000,), ""),
    ):
        result = run("describe", "--model", "m", *words)
        refused(result, words[0][:20], remedy, "ppe-npu")
        assert len(result[2]) < 700


def test_no_command_and_unknown_commands(run):
    refused(run(), "command")
    refused(run("sing"), "sing")
    refused(run("report", "--sing\n\x1b[31m"), r"--sing \x1b[31m")
    asked = ["describe", "--model", "m", "--image", "a.png", "--min-pixels", 10**12]
    refused(run(*asked), "min_pixels=1000000000000 must be in (0,")


def test_help_loads_neither_torch_nor_transformers():
    code = (
        "import sys; from ppe_npu import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'av', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "describe" in done.stdout


def test_a_picture_that_is_not_there_is_one_line(run, tiny_folder, tmp_path):
    asked = ["describe", "--model", tiny_folder, "--compression", "keep_one", "--image", tmp_path / "none.png"]
    refused(run(*asked), f"image {tmp_path}/none.png does not exist: check the path")
    asked = ["describe", "--model", Path(tiny_folder, "config.json"), "--image", "a.png"]
    refused(run(*asked), "config.json is not a folder: give the checkpoint's folder")
    asked = ["describe", "--model", tiny_folder, "--compression", "keep_one", "--image", "a.png", "--max-pixels", 1]
    refused(run(*asked), f"of {tiny_folder} is larger than max_pixels=1: give both")


@pytest.mark.slow
def test_the_installed_command_prints_one_line_and_no_traceback(tiny_folder, tmp_path):
    command = [sys.executable, "-m", "ppe_npu.cli", "describe", "--model", tiny_folder, "--compression", "keep_one"]
    done = subprocess.run([*command, "--image", tmp_path / "none.png"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"ppe-npu: error: image {tmp_path}/none.png does not exist: check the path\n"


def test_a_fault_of_ours_keeps_its_traceback(run, monkeypatch, tmp_path):
    monkeypatch.setattr("ppe_npu.cli.parity.run_parity", lambda args: {}["a fault"])
    with pytest.raises(KeyError):
        run("parity")


@pytest.mark.ci
def test_the_embedded_run_takes_the_options_that_are_given(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ppe_npu.cli.train._TRAIN_IMAGES", 4)
    monkeypatch.setattr("ppe_npu.cli.train._TEST_IMAGES", 1)
    monkeypatch.setattr("ppe_npu.cli.train._QUESTIONS", 3)
    given = ["--learning-rate", 1e-4, "--batch-size", 2, "--schedule", "constant", "--seed", 7, "--max-steps", 1]
    code, _, err = run("train", "--device", "cpu", "--output", tmp_path / "run", *given)
    assert code == 0, err
    settings = json.loads((tmp_path / "run" / "summary.json").read_text())["settings"]
    assert {name: settings[name] for name in ("learning_rate", "batch_size", "schedule", "seed", "max_steps")} == {
        "learning_rate": 1e-4,
        "batch_size": 2,
        "schedule": "constant",
        "seed": 7,
        "max_steps": 1,
    }
    assert Path(settings["model"]).name == "base-seed7"


def test_every_options_help_says_what_it_is_and_what_it_is_by_default():
    """Each option's help has words beside "(default: ...)", and states its default unless that is a switch's; each
    command's help says what the command does."""
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    wordless, unsaid = [], []
    for name, parser in commands.choices.items():
        if len((parser.description or "").split()) < 2:
            wordless.append(name)
        for option in parser._actions:
            said, flag = option.help or "", f"{name} {option.option_strings or option.dest}"
            if len(re.sub(r"\(default:[^)]*\)", "", said).split()) < 2:
                wordless.append(flag)
            defaults = [] if option.default in (None, False, argparse.SUPPRESS) else option.default
            for default in defaults if isinstance(defaults, list) else [defaults]:
                if f"default: {default}" not in said:
                    unsaid.append(flag)
    assert (wordless, unsaid) == ([], [])


@pytest.mark.parametrize("command", ["train", "data", "eval", "describe"])
def test_help_names_every_preset(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    listed = " ".join(out.split())
    for name in ("dense", "chatunivi", "keep_one", "ppe", "ppe_plus"):
        assert f" {name}," in listed
    assert " ppe_cascade or any method listed by `ppe-npu methods`" in listed


def test_the_embedded_run_does_not_take_another_models_place(run, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"model": "/models/mine"}))
    refused(run("train", "--device", "cpu", "--output", tmp_path), "holds a run of another model", "--output")


def test_a_folder_that_cannot_be_written_is_one_line(run, tiny_folder, tmp_path):
    (tmp_path / "file").write_text("")
    refused(run("train", "--device", "cpu", "--output", tmp_path / "file" / "run"), "file")


@pytest.mark.slow
def test_a_torch_npu_without_cann_is_said_whatever_the_device(tmp_path):
    """torch imports packages with such an entry point, and does not survive if that fails."""
    info = tmp_path / "torch_npu-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')\n")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    def run(**variables):
        command = [sys.executable, "-m", "ppe_npu.cli", "eval", "--device", "npu", "--model", tmp_path]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ | variables)

    done = run()
    refused((done.returncode, done.stdout, done.stderr), "finds no CANN", "set_env.sh", "EMULATE=1")
    done = run(TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    refused((done.returncode, done.stdout, done.stderr), "'npu' cannot be used", "libhccl.so", "EMULATE=1")


NAMES = [("x\udcff", "utf-8", r"x\udcff"), ("é→", "ascii", r"\xe9\u2192")]


@pytest.mark.parametrize(("name", "encoding", "spelt"), NAMES)
def test_what_the_terminal_cannot_show_is_spelt_out(tmp_path, monkeypatch, name, encoding, spelt):
    """A file name that is not text, or characters that the encoding lacks."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"query": "q", "response": "a"}) + "\n")
    output = tmp_path / f"{name}.jsonl"
    with open(tmp_path / "out", "w", encoding=encoding) as out:
        monkeypatch.setattr("sys.stdout", out)
        assert cli.main(["convert", "--data", str(tmp_path / "a.jsonl"), "--output", str(output)]) == 0
    assert spelt in (tmp_path / "out").read_text(encoding=encoding)
    assert output.is_file()
