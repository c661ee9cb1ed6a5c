"""A folder whose files ask for Python code of their own: every command that reads a model names the file in one line
before it does anything else, and runs none of that code."""

from __future__ import annotations

import builtins
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import refused

from ppe_npu.errors import InputError

MARK = "from pathlib import Path\nPath({!r}).write_text('x')\nclass P:\n    pass\n"
ASKING = {
    "config.json": {"auto_map": {"AutoConfig": "evil.P", "AutoModelForImageTextToText": "evil.P"}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.P", "evil.P"]}, "tokenizer_class": "P"},
    "processor_config.json": {"auto_map": {"AutoProcessor": "evil.P"}, "processor_class": "P"},
    "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "evil.P"}, "image_processor_type": "P"},
}


@pytest.fixture(params=ASKING)
def asking(request, tiny_folder, tmp_path, monkeypatch):
    """(folder, the file that asks, a file that exists if code has run); a question on the terminal fails the test."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    file, ran = folder / request.param, tmp_path / "ran"
    old = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(old | ASKING[request.param]))
    (folder / "evil.py").write_text(MARK.format(str(ran)))

    def ask(*_):
        pytest.fail("somebody was asked on the terminal")

    monkeypatch.setattr(builtins, "input", ask)
    monkeypatch.chdir(folder)  # where Python would find evil.py, too
    return folder, request.param, ran


@pytest.fixture
def packages(monkeypatch):
    """Makes vLLM and Gradio appear to be installed."""
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there("json") if name == "vllm" else there(name))
    monkeypatch.setattr("ppe_npu.cli.explore.optional", lambda *_: None)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("a server was started"))


@pytest.fixture
def commands(tmp_path, write_image):
    """Every command that reads a model, without the model's path at its end."""
    image = write_image("a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    data = tmp_path / "d.json"
    data.write_text(json.dumps([{"id": "a", "image": image, "conversations": turns}]))
    cpu, out = ["--device", "cpu"], ["--output", tmp_path / "out"]
    return {
        "train": ["train", *cpu, *out, "--data", data, "--max-steps", 1, "--model"],
        "data": ["data", "--data", data, "--model"],
        "eval": ["eval", *cpu, *out, "--benchmarks", "layout", "--data-root", tmp_path, "--model"],
        "eval with vLLM": ["eval", *cpu, *out, "--engine", "vllm", "--benchmarks", "layout", "--model"],
        "describe": ["describe", *cpu, "--image", image, "--model"],
        "explore": ["explore", *cpu, "--model"],
        "serve": ["serve", "--model"],
        "export": ["export", *out, "--checkpoint"],
        "export for vLLM": ["export", *out, "--vllm", "--checkpoint"],
    }


def test_no_command_runs_it(asking, commands, packages, run, tmp_path):
    folder, file, ran = asking
    for name, words in commands.items():
        refused(run(*words, folder), file, "runs no code of a checkpoint: use one whose classes", folder)
        assert not ran.exists(), name
        assert not (tmp_path / "out").exists(), name


def test_neither_does_an_lmms_eval_model_nor_the_package_itself(asking):
    import ppe_npu
    from ppe_npu.evaluation.lmms import Answerer

    folder, file, ran = asking
    for read in (ppe_npu.from_pretrained, Answerer.load):
        with pytest.raises(InputError, match=rf"in {file}\), but this package runs no code"):
            read(str(folder))
        assert not ran.exists()


def test_a_marked_checkpoint_is_looked_into_and_no_flag_is_passed_on(run, tiny_folder, tmp_path, packages):
    served = tmp_path / "served"
    assert run("export", "--vllm", "--checkpoint", tiny_folder, "--output", served, "--compression", "ppe")[0] == 0
    for flag in ("--trust-remote-code", "--trust_remote_code", "--trust-remote-code=true"):
        refused(run("serve", "--model", served, "--", flag), flag, "code of a checkpoint is never run")
    file = served / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ASKING[file.name]))
    refused(run("serve", "--model", served), file.name, "runs no code of a checkpoint")
