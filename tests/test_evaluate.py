"""`ppe-npu eval` and `report`: every benchmark with every compression, by any number of processes; mistakes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import refused

from ppe_npu.backends import device as devices
from ppe_npu.cli import evaluate
from ppe_npu.demo import scenes
from ppe_npu.evaluation import benchmarks
from ppe_npu.evaluation.benchmarks.layout import Layout

pytestmark = pytest.mark.usefixtures("undrawn_report")


class Again(Layout):
    """The embedded benchmark under another name, with its own length of answers and its own metric."""

    name, max_new_tokens, headline = "again", 1, "length"

    def unit(self, row):
        return row["index"]

    def metrics(self, rows):
        return {"length": sum(len(row["answer"]) + 1 for row in rows)}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with test.jsonl (12 questions), and a second benchmark on it, "again"."""
    scenes.write_split(tmp_path / "data", "test", 4, seed=1, questions_per_image=3)
    load = benchmarks.load
    monkeypatch.setattr(benchmarks, "load", lambda name, root: Again(root) if name == "again" else load(name, root))
    return tmp_path / "data"


@pytest.fixture
def asked(tiny_folder, data, tmp_path):
    """The arguments of an evaluation of the tiny model."""
    return [
        *("eval", "--device", "cpu", "--model", tiny_folder, "--data-root", data, "--output", tmp_path / "out"),
        *("--max-new-tokens", 2, "--cost-rounds", 0, "--no-smaller-input"),
    ]


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.ci
def test_every_benchmark_with_every_compression_at_every_ratio(run, asked, tmp_path):
    more = ["--benchmarks", "layout", "again", "--compression", "dense", "keep_one", "ppe", "--k", 4]
    more += ["--ratio", 0.25, 0.5]
    code, out, err = run(*asked, *more)
    assert code == 0, err
    folders = sorted(str(file.parent.relative_to(tmp_path / "out")) for file in tmp_path.rglob("results.json"))
    labels = ["dense"] + [
        f"dpc_knn-{name}-nearest-raster-{r}" for name in ("keep_one-k1", "ppe-k4") for r in (0.25, 0.5)
    ]
    assert folders == sorted(f"{benchmark}/{label}" for benchmark in ("again", "layout") for label in labels)
    for folder in folders:
        assert sorted(row["index"] for row in rows(tmp_path / "out" / folder)) == list(range(12))
    head = "| method, under protocol checkpoint (max_new_tokens 2) |"
    assert out.startswith(f"{head} again (length) | layout | Avg of 1 in % | % of dense |")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["name"] for row in report["overview"]] == [
        *("dense", "keep_one 0.5", "ppe k=4 0.5", "keep_one 0.25", "ppe k=4 0.25")
    ]
    assert report["benchmarks"]["again"]["score"] == "length"


USER = """
class {name}:
    modality = "text"
    def __len__(self):
        return 3
    def __getitem__(self, number):
        if number == 1:
            raise ValueError("rotten")
        return {{"index": number, "prompt": "What?", "GT": "a"}}
    def metrics(self, rows):
        return {{"share": 1 / {divisor}}}
"""


def test_a_users_rotten_row_and_metrics_stop_neither_the_other_runs_nor_the_report(run, asked, tmp_path):
    (tmp_path / "user.py").write_text(USER.format(name="Mine", divisor=0) + USER.format(name="Other", divisor=1))
    names = [f"{tmp_path}/user.py:Mine", f"{tmp_path}/user.py:Other"]
    code, out, err = run(*asked, "--benchmarks", *names, "--compression", "dense", "keep_one")
    assert code == 1
    assert "ppe-npu: 4 of 12 samples failed; the first one with: sample row 1: __getitem__() of Mine failed at" in err
    where = "metrics() of Mine failed at user.py:11: ZeroDivisionError: division by zero; fix it and run again"
    assert f"ppe-npu: Mine, keep_one 0.45: {where}" in err
    assert "Other, dense: metrics()" not in err
    assert len(list(tmp_path.rglob("results.json"))) == 4
    assert "| keep_one 0.45 |" in out
    failed = [row for row in rows(tmp_path / "out" / "Mine" / "dense") if "error" in row]
    assert [(row["index"], row["error"]) for row in failed] == [
        ("row 1", "__getitem__() of Mine failed at user.py:8: ValueError: rotten")
    ]


@pytest.mark.ci
def test_a_second_call_asks_nothing_again_and_adds_to_the_report(run, asked, tmp_path, monkeypatch):
    assert run(*asked, "--compression", "keep_one")[0] == 0
    before = (tmp_path / "out" / "report.md").read_text()
    with monkeypatch.context() as broken:
        broken.setattr("ppe_npu.evaluation.answers.generate", lambda *_, **__: 1 / 0)
        assert run(*asked, "--compression", "keep_one")[0] == 0
    assert (tmp_path / "out" / "report.md").read_text() == before
    code, out, _ = run(*asked, "--compression", "chatunivi")
    assert code == 0
    assert "| keep_one 0.45 |" in out
    assert "| chatunivi 0.45 |" in out


def test_a_benchmark_says_how_long_its_answers_are_unless_the_user_does(run, asked, tmp_path):
    settings = tmp_path / "out" / "again" / "dense" / "settings.json"
    at = asked.index("--max-new-tokens")
    plain = [*asked[:at], *asked[at + 2 :], "--benchmarks", "again", "--compression", "dense"]
    assert run(*plain)[0] == 0
    assert json.loads(settings.read_text())["max_new_tokens"] == 1
    refused(run(*plain, "--max-new-tokens", 3), "another max_new_tokens", settings.parent)


@pytest.mark.ci
def test_mistakes_are_said_before_the_weights_are_read(run, asked, tiny_folder, data, tmp_path, monkeypatch):
    assert run(*asked, "--compression", "dense")[0] == 0
    monkeypatch.setattr(evaluate, "load_model", None)  # would fail if called
    refused(run(*asked, "--benchmarks", "nosuch", "layout", "worse"), "nosuch", "worse", "layout")
    refused(run(*asked, "--benchmarks", "layout", "layout"), "layout is named twice")
    refused(run(*asked, "--data-root", tmp_path), "test.jsonl does not exist")
    refused(run(*asked, "--draws", 0), "--draws 0: no rule of protocol checkpoint", "leave it out")
    refused(run(*asked, "--compression", "dense", "best"), "best", "chatunivi")
    refused(run(*asked, "--compression", "dense", "ppe", "--k", 9), "k=9")
    refused(run(*asked, "--compression", "keep_one", "--ratio", 0.5, 2), "ratio=2")
    for option, value in (("--batch-size", 0), ("--batch-tokens", -1), ("--max-new-tokens", 0), ("--seed", -1)):
        refused(run(*asked, "--compression", "dense", option, value), f"{option} {value}")
    refused(run(*asked, "--compression", "keep_one", "dense", "--max-new-tokens", 3), "another max_new_tokens")
    scenes.write_split(data, "test", 4, seed=2, questions_per_image=3)
    refused(run(*asked, "--compression", "dense"), "another data", tmp_path / "out")
    (tmp_path / "file").write_text("")
    refused(run(*asked, "--compression", "dense", "--output", tmp_path / "file"), "file is a file")
    for name, value in {"GROUP_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("ppe_npu.evaluation.sharing.check_shared.__defaults__", (0.1,))
    scenes.write_split(data, "test", 4, seed=1, questions_per_image=3)
    refused(run(*asked, "--compression", "keep_one", "--output", tmp_path / "mine"), "not the folder that the first")


@pytest.mark.ci
def test_other_weights_in_the_folder_are_refused(run, asked, tiny_folder, monkeypatch):
    assert run(*asked, "--compression", "dense")[0] == 0
    load = evaluate.load_model

    def changed(*args, **asked):
        model = load(*args, **asked)
        with torch.no_grad():
            model.lm_head.weight.add_(1)
        return model

    monkeypatch.setattr(evaluate, "load_model", changed)
    refused(run(*asked, "--compression", "dense"), "another weights")


def test_what_failed_is_said_and_all_failing_is_a_failure(run, asked, monkeypatch):
    monkeypatch.setattr("ppe_npu.evaluation.answers.generate", lambda *_, **__: 1 / 0)
    code, out, err = run(*asked, "--compression", "keep_one")
    assert code == 1
    assert "12 of 12 samples failed, so there is no table; the first one with: sample " in err
    assert "|" not in out
    assert out.startswith("written to ")


def test_what_failed_is_said_before_the_table(run, asked, tmp_path, monkeypatch):
    """A score of 0.0 in the table does not say that nothing was scored."""
    scored = USER.format(name="Mine", divisor=1)
    (tmp_path / "user.py").write_text(scored + "    def score(self, answer, sample): return 1 / 0\n")
    said = []
    monkeypatch.setattr("ppe_npu.cli.failures.say", said.append)
    monkeypatch.setattr("ppe_npu.cli.evaluate.print", lambda text: said.append(text), raising=False)
    code = run(*asked, "--benchmarks", "layout", f"{tmp_path}/user.py:Mine", "--compression", "dense")[0]
    assert code == 0
    failed, table, _ = (said.index(line) for line in said if line.startswith(("3 of 15", "| method", "answers of")))
    assert said[failed].startswith("3 of 15 samples failed, among them all of Mine, dense; the first one with: sample ")
    assert failed < table
    said.clear()
    monkeypatch.setattr("ppe_npu.cli.evaluate.say", said.append)
    (tmp_path / "user.py").write_text(scored + "    def score(self, answer, sample): return 1.0\n")
    run(*asked, "--benchmarks", f"{tmp_path}/user.py:Mine", "--compression", "keep_one")
    assert "Mine: its code changed between its runs, so their scores do not compare: run all again" in said


def test_report_of_a_folder(run, asked, tmp_path):
    assert run(*asked, "--compression", "dense", "keep_one")[0] == 0
    (tmp_path / "out" / "report.md").unlink()
    code, out, err = run("report", tmp_path / "out", "--out", tmp_path / "new" / "all.md", "--title", "All of it")
    assert code == 0, err
    assert "| keep_one 0.45 |" in out
    assert (tmp_path / "new" / "all.md").read_text().startswith("# All of it\n")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["all.json", "all.md", "all.png"]
    assert not (tmp_path / "out" / "report.md").exists()
    for own in (tmp_path / "out").rglob("results.json"):
        refused(
            run("report", tmp_path / "out", "--out", own.with_suffix(".md")),
            own.stem,
            "is the name of an evaluation's own file",
        )


def test_report_refuses(run, tmp_path):
    refused(run("report", tmp_path / "none"), "none is not a folder: name the --output of an evaluation")
    refused(run("report", tmp_path), "holds no results", "ppe-npu eval --output")
    refused(run("report", tmp_path, "--out", tmp_path / "r.pdf"), "r.pdf", ".md")


@pytest.mark.slow
def test_two_processes_share_the_work(asked, tmp_path):
    """Started with torchrun's variables, but without its agent, which would take seconds."""
    command = [sys.executable, "-m", "ppe_npu.cli", *map(str, asked), "--compression", "dense", "keep_one"]
    facts = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [*command, "--batch-size", "1"],
            env={**os.environ, **facts, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for label in ("dense", "dpc_knn-keep_one-k1-nearest-raster-0.45"):
        folder = tmp_path / "out" / "layout" / label
        assert sorted(row["index"] for row in rows(folder)) == list(range(12))
    assert said[0][0].startswith("| method, under protocol checkpoint (max_new_tokens 2) | layout |")
    assert said[1] == ("", "")  # only one process prints


def test_a_process_takes_its_own_device(monkeypatch):
    class Runtime:
        chosen = None

        @staticmethod
        def device_count():
            return 2

        @classmethod
        def set_device(cls, index):
            cls.chosen = index

    cuda = torch.device("cuda")
    monkeypatch.setattr(devices, "_runtime", lambda device: Runtime if device.type == "cuda" else None)
    assert devices.of_this_process(cuda) == cuda
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.of_this_process(cuda) == torch.device("cuda:1")
    assert Runtime.chosen == 1
    assert devices.of_this_process(torch.device("cuda:0")) == torch.device("cuda:0")
    assert devices.of_this_process(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(devices.DeviceError, match="process 2 of this machine has no cuda: there are 2"):
        devices.of_this_process(cuda)
