"""ppe-npu doctor, --json and completion: what a machine has, numbers for programs, and a shell script."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from command_line import refused

from ppe_npu.backends import dispatch
from ppe_npu.backends.finding import KINDS
from ppe_npu.cli import doctor
from ppe_npu.cli.parser import DEVICES, build_parser

PRINT_NUMBERS = ("train", "data", "convert", "eval", "report", "describe", "methods", "parity", "demo", "doctor")


def test_doctor_says_what_is_there_and_why_not(run):
    code, out, err = run("doctor", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"]["cpu"]["there"]
    for kind, row in found["devices"].items():
        assert row["there"] or row["why"]
        rows = [entry for entries in found["operators"][kind].values() for entry in entries]
        assert row["there"] or all(not entry["runs"] and f"no {kind} device" in entry["why"] for entry in rows)
    ops = found["operators"]["cpu"]
    assert set(ops) == set(dispatch.ops())
    for op, rows in ops.items():
        assert [row["name"] for row in rows if row["runs"]] == [entry.name for entry in dispatch.available(op, "cpu")]
        assert all(row["why"] for row in rows if not row["runs"])
    assert found["memory"]["total"] >= found["memory"]["free"] > 0
    text = run("doctor")[1]
    for words in (torch.__version__, "operators on cpu", "memory", "disk", "In a bug report, include all of this"):
        assert words in text
    assert all(op in text for op in ops)


def test_doctor_fails_where_something_needed_is_missing_and_shows_no_secret(run, monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "av" else version(name))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, out, _ = run("doctor")
    assert code == 1
    assert "PROBLEM: av is not installed" in out
    assert "OMP_NUM_THREADS=1" in out
    assert "hf_secret" not in out


def test_files_that_the_system_caches_are_no_memory_in_use(monkeypatch):
    memory = SimpleNamespace(total=24 << 30, available=19 << 30, free=4 << 30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert doctor._memory() == {"total": 24 << 30, "free": 19 << 30}
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert doctor._memory() is None


def test_doctor_names_versions_that_are_not_asked_for(run, monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "0.1.dev1" if name == "accelerate" else version(name))
    code, out, _ = run("doctor")
    assert code == 0
    assert "NOTE: accelerate 0.1.dev1 is not tested with this package, which requires ==1.1.1" in out
    assert "NOTE: torch" not in out


def test_every_command_that_prints_numbers_has_json():
    commands = next(action for action in build_parser()._actions if hasattr(action, "choices") and action.choices)
    having = {name for name, parser in commands.choices.items() if "--json" in parser.format_help()}
    assert having == set(PRINT_NUMBERS)


def test_numbers_for_programs(run, tiny_folder, write_image, tmp_path):
    """With --json standard output holds one JSON value, the same numbers as the text, which goes to standard error."""
    asked = [
        "describe",
        "--model",
        tiny_folder,
        "--image",
        write_image("a.png"),
        "--max-new-tokens",
        2,
        "--device",
        "cpu",
    ]
    cascade = tmp_path / "cascade.json"
    cascade.write_text(json.dumps({"ratio": 0.5, "layers": [1], "before_llm": True, "k": 2}))
    code, out, err = run(*asked, "--compression", cascade, "--json")
    assert code == 0, err
    found = json.loads(out)
    layers = found["visual_tokens_by_layer"]
    assert layers[0] == 18
    assert layers[1:] == [9] * (len(layers) - 1)
    assert found["visual_tokens_after"] == sum(layers) / len(layers)
    mean = f"the mean over {len(layers)} decoder layers: 18 in 0, 9 from 1 on"
    assert f"({100 * found['visual_tokens_kept']:.1f} % kept, {mean})" in err
    assert f"{found['prompt_tokens_after']} after the last merge" in err
    data = tmp_path / "d.jsonl"
    talk = [{"from": "human", "value": "row"}, {"from": "gpt", "value": "3"}]
    data.write_text(json.dumps({"conversations": talk}) + "\n{")
    code, out, err = run("data", "--model", tiny_folder, "--data", data, "--compression", "dense", "--json")
    assert code == 1
    assert json.loads(out)["records"] == 1
    assert json.loads(out)["unusable"][0]["line"] == "d.jsonl line 2"
    assert "# Training data" in err


@pytest.mark.ci
def test_train_eval_and_report_for_programs(run, tiny_folder, tmp_path):
    from ppe_npu.demo import scenes

    for name in ("train", "test"):
        scenes.write_split(tmp_path / "data", name, 2, seed=1, questions_per_image=3)
    asked = ["--data", tmp_path / "data" / "train.jsonl", "--output", tmp_path / "run", "--device", "cpu"]
    settings = ["--max-steps", 1, "--compression", "ppe", "--k", 4, "--adapter", "lora", "--lora-targets", "q_proj"]
    more = ["--lora-dropout", 0.1, "--lora-parts", "language", "vision", "--json"]
    code, out, err = run("train", "--model", tiny_folder, *asked, *settings, *more)
    assert code == 0, err
    result = json.loads(out)
    assert result["steps"] == 1
    assert "step 1 of 1: loss" in err or "learning rate" in err
    config = json.loads((tmp_path / "run" / "final" / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.1
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == {"q_proj"}
    where = ["--data-root", tmp_path / "data", "--output", tmp_path / "eval", "--max-new-tokens", 1, "--device", "cpu"]
    code, out, err = run("eval", "--model", tiny_folder, *where, "--compression", "dense", "--json")
    assert code == 0, err
    assert [row["name"] for row in json.loads(out)["overview"]] == ["dense"]
    assert json.loads(run("report", tmp_path / "eval", "--json")[1])["overview"] == json.loads(out)["overview"]


def test_completion(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    refused(run("completion", "bash"), "shell completion needs shtab", "[completion]")
    taught = {}

    def complete(parser, shell):
        commands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices).choices
        taught.update({(name, act.dest): act for name, command in commands.items() for act in command._actions})
        return f"{shell} of {parser.prog}"

    monkeypatch.setitem(sys.modules, "shtab", SimpleNamespace(complete=complete, FILE="any file"))
    assert run("completion", "zsh")[:2] == (0, "zsh of ppe-npu\n")
    for command, option in (("describe", "image"), ("eval", "model"), ("report", "folder"), ("train", "data")):
        assert taught[command, option].complete == "any file"
    for command, option, name in (("eval", "compression", "divprune"), ("eval", "benchmarks", "docvqa")):
        assert name in taught[command, option].choices
    assert not hasattr(taught["describe", "prompt"], "complete")


def test_small_commands_import_no_torch():
    """A shell waits for the completion that it evaluates, and doctor must work where torch is broken."""
    asked = "import sys; from ppe_npu.cli import completion, doctor, output, parser; completion._names()"
    found = f"{asked}; print(*{{'torch', 'transformers'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", found], capture_output=True, text=True).stdout == "\n"
    assert set(DEVICES) == {"auto", *KINDS}


def test_completion_by_shtab_itself(run, tmp_path):
    pytest.importorskip("shtab")
    code, out, _ = run("completion", "bash")
    assert code == 0
    (tmp_path / "photo.jpg").touch()
    script = 'COMP_WORDS=(ppe-npu describe "$@"); COMP_CWORD=3; _shtab_ppe_npu; echo "${COMPREPLY[*]}"'
    for words, answer in ((("--image", "pho"), "photo.jpg"), (("--compression", "divp"), "divprune")):
        asked = ["bash", "-c", f"{out}\n{script}", "bash", *words]
        assert subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True).stdout.strip() == answer
