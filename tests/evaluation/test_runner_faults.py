"""evaluate() where a benchmark's own code fails: every error is recorded, and nothing else is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ppe_npu.checkpoints.loading import load_model
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.evaluation import answers
from ppe_npu.evaluation.benchmarks.dataset import Sample
from ppe_npu.evaluation.runner import evaluate
from ppe_npu.models import compress


@pytest.fixture(scope="module")
def model(tiny_folder):
    return compress(load_model(tiny_folder), CompressionConfig.preset("ppe", k=4))


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]


class Rotten:
    """Four questions, of which the rows in `rotten` raise."""

    name, modality, headline = "rotten", "text", None

    def __init__(self, rotten=(2,)):
        self.rotten = rotten

    def __len__(self):
        return 4

    def __getitem__(self, number):
        if number in self.rotten:
            raise ValueError(f"row {number} is rotten\nand more")
        return {"index": f"q{number}", "prompt": "What comes next?", "GT": "a", "type": "t"}


ROTTEN = f"__getitem__() of rotten failed at test_runner_faults.py:{Rotten.__getitem__.__code__.co_firstlineno + 2}"


def test_a_row_that_cannot_be_read_is_recorded_and_the_rest_goes_on(model, tiny_processor, tmp_path):
    results = evaluate(model, tiny_processor, Rotten(), tmp_path, batch_size=3, max_new_tokens=1)
    assert (results["samples"], results["errors"], results["accuracy"]["count"]) == (4, 1, 4)
    found = {row["index"]: row.get("error") for row in rows(tmp_path)}
    assert found == {
        "q0": None,
        "q1": None,
        "q3": None,
        "row 2": f"{ROTTEN}: ValueError: row 2 is rotten",
    }
    again = evaluate(model, tiny_processor, Rotten(), tmp_path, batch_size=3, max_new_tokens=1)
    assert again["accuracy"] == results["accuracy"]
    assert sorted(row["index"] for row in rows(tmp_path)) == ["q0", "q1", "q3", "row 2"]


@pytest.mark.parametrize(("error", "told"), [(KeyError("ours"), 1), (InputError("theirs"), 0)])
def test_a_fault_of_ours_in_a_sample_keeps_its_first_traceback(
    model, tiny_processor, tmp_path, monkeypatch, capsys, error, told
):
    """Every sample is asked and has its line; a fault of ours prints one traceback, with a request to report it."""

    def breaks(*args, **kwargs):
        raise error

    monkeypatch.setattr("ppe_npu.models.vision_language.make_plan", breaks)
    results = evaluate(model, tiny_processor, Rotten(()), tmp_path, batch_size=3, max_new_tokens=1)
    assert results["errors"] == 4
    assert {row["error"] for row in rows(tmp_path)} == {f"KeyError: {error}" if told else "theirs"}
    err = capsys.readouterr().err
    assert (
        err.count("Traceback") == err.count("failed through no fault of yours: please report all of the above") == told
    )
    assert ("in breaks" in err) == bool(told)


def test_a_row_that_turns_bad_while_the_run_goes_on_is_recorded(model, tiny_processor, tmp_path, monkeypatch):
    benchmark, prepare = Rotten(()), answers.ModelAnswers.prepare

    def spoils(self, samples):
        benchmark.rotten = (1,)
        return prepare(self, samples)

    monkeypatch.setattr(answers.ModelAnswers, "prepare", spoils)
    results = evaluate(model, tiny_processor, benchmark, tmp_path, batch_size=1, max_new_tokens=1)
    assert results["errors"] == 1
    assert [row["index"] for row in rows(tmp_path) if "error" in row] == ["q1"]
    assert len(rows(tmp_path)) == 4


def test_a_picture_that_cannot_be_decoded_is_recorded(model, tiny_processor, tmp_path):
    def broken():
        raise OSError("broken data stream")

    class Pictures(Rotten):
        def __getitem__(self, number):
            fields = {"index": number, "prompt": "What?", "GT": "a"}
            return Sample(fields, image=broken if number == 1 else None)

    results = evaluate(model, tiny_processor, Pictures(), tmp_path, batch_size=4, max_new_tokens=1)
    assert [row["index"] for row in rows(tmp_path) if "broken data stream" in row.get("error", "")] == [1]
    assert results["errors"] == 1


def test_a_benchmark_without_a_readable_row_is_refused(model, tiny_processor, tmp_path):
    with pytest.raises(
        InputError, match=rf"rotten: no sample can be read \({re.escape(ROTTEN)}: ValueError: row 0 is rotten\)"
    ):
        evaluate(model, tiny_processor, Rotten(range(4)), tmp_path)


def test_metrics_that_fail_lose_no_answer_and_are_computed_when_mended(model, tiny_processor, tmp_path):
    class Broken(Rotten):
        divisor = 0

        def score(self, answer, sample):
            return 1.0

        def metrics(self, rows):
            return {"share": 1 / self.divisor}

    results = evaluate(model, tiny_processor, Broken(), tmp_path, max_new_tokens=1)
    at = f"test_runner_faults.py:{Broken.metrics.__code__.co_firstlineno + 1}"
    assert results["metrics_error"] == f"metrics() of rotten failed at {at}: ZeroDivisionError: division by zero"
    assert "metrics" not in results
    assert (results["accuracy"]["accuracy"], results["errors"], results["costs"]["batch"]) == (0.75, 1, 3)
    assert json.loads((tmp_path / "results.json").read_text())["metrics_error"]
    Broken.divisor = 2
    mended = evaluate(model, tiny_processor, Broken(), tmp_path, max_new_tokens=1)
    assert mended["metrics"] == {"share": 0.5}
    assert "metrics_error" not in mended
