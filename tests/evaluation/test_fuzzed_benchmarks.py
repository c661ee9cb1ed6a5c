"""Randomly damaged data of a benchmark: one line names the damage, or every sample is answered or listed with its
error; no reader and no scorer fails."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_files
import pytest
from bounds import bounded
from mutations import JUNK, both, damage, dice, mutated, thousand
from test_benchmarks import PUBLISHED, load
from test_metrics_wups import Small

from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.evaluation import protocols
from ppe_npu.evaluation.answers import ModelAnswers
from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.evaluation.runner import Evaluation

SAID = ("A", "(B) 猫", "yes", "12", "<table><tr><td>1</td></tr></table>", '{"a": 1}', "[0, 0, 10, 10]", "")


class Looking(ModelAnswers):
    """Reads what a model would be shown, and gives the answers in SAID in turn."""

    family = "qwen2_5_vl"

    def __init__(self, processor: Any) -> None:
        self.processor, self.sampling, self._cache = processor, None, None
        self.config = CompressionConfig.preset("dense")
        self.model = SimpleNamespace(config=SimpleNamespace())

    def settings(self) -> dict[str, Any]:
        return {"compression": self.config.to_dict()}

    unsaid = versions = ignored = lambda self: {}

    def answer(self, inputs: Any) -> SimpleNamespace:
        count = len(inputs["input_ids"])
        ones = dict.fromkeys(("tokens_before", "tokens_after", "new_tokens", "prompt_kv_bytes"), [1] * count)
        times = dict.fromkeys(("prefill_seconds", "seconds", "kv_bytes"), 0.0)
        answers = [SAID[number % len(SAID)] for number in range(count)]
        return SimpleNamespace(answers=answers, peak_memory=None, **ones, **times)

    def out_of_memory(self, error: BaseException) -> bool:
        return False


def change(file: Path, others: list[Path], draw: random.Random) -> str:
    """Changes one value of a table, or damages the file with damage(); returns what it did."""
    if file.suffix not in (".csv", ".tsv", ".parquet") or draw.random() < 0.3:
        return damage(file, draw.choice(others), draw)
    if file.suffix == ".parquet":
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table

        rows = read_table(file).to_pylist()
        at = draw.randrange(len(rows))
        key = draw.choice(sorted(rows[at]))
        new = {key: value for key, value in rows[at].items() if draw.random() > 0.1} | {key: draw.choice(JUNK)}
        try:
            file.unlink()
            benchmark_files.parquet(file, [*rows[:at], new, *rows[at + 1 :]])
        except (ArrowException, UnicodeEncodeError, OverflowError):  # a column has one type: change it in all rows
            benchmark_files.parquet(file, [{**row, key: draw.choice([None, "x", ""])} for row in rows])
        return f"cell {key}"
    kind = {"delimiter": "\t" if file.suffix == ".tsv" else ","}
    rows = list(csv.reader(file.read_text(encoding="utf-8").splitlines(), **kind))
    at = draw.choice(rows)
    value = mutated(at, draw)
    at[:] = [str(cell).replace("\ud800", "?") for cell in (value if isinstance(value, list) else [value])]
    file.unlink()
    with open(file, "w", encoding="utf-8", newline="") as out:
        csv.writer(out, **kind).writerows(rows)
    return "cell"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


def check(whole: Path, place: Path, processor: Any, name: str, number: int) -> str:
    """Checks the law for one change; returns what came of it."""
    draw = dice(name, number)
    folder = benchmark_files.folder_of(name)
    benchmark_files.write_all(whole, name)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole / folder, place / "data" / folder, copy_function=os.link)
    files = sorted(path for path in (place / "data").rglob("*") if path.is_file())
    tables = [path for path in files if path.suffix in (".json", ".jsonl", ".csv", ".tsv", ".parquet")]
    file = draw.choice(files + 3 * len(files) // max(len(tables), 1) * tables)
    what = (name, number, file.name, change(file, files, draw))
    with bounded(what):
        try:
            benchmark = load(name, place / "data")
            benchmark.taxonomy = Small()  # replaces WordNet in the benchmark that needs it
            if len(benchmark) == 0:  # benchmarks.load() refuses it
                return "refused"
            registry.ask_by(protocols.load(draw.choice(protocols.names())), benchmark)
            with Evaluation(Looking(processor), benchmark, place / "out", 4, bar=False) as evaluation:
                results = evaluation.run()
        except InputError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(what) from error
        else:
            said = None
    if said is not None:
        assert "cannot be constructed" not in said, (what, said)
        assert "\n" not in said, (what, said)
        assert len(said) < 3000, (what, said)
        assert str(place) in said or name in said, (what, said)
        return "refused"
    assert "metrics_error" not in results, (what, results["metrics_error"])
    rows = [json.loads(line) for line in (place / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == len(benchmark) == results["samples"], what
    wrong = [row["error"] for row in rows if "error" in row]
    assert all("\n" not in said for said in wrong), (what, wrong)
    return "named" if wrong else "answered"


@thousand(6)
@pytest.mark.ci
def test_a_benchmarks_damaged_data_are_named_or_make_no_difference(whole, tmp_path, tiny_processor, numbers):
    found = [
        check(whole, tmp_path / "copy", tiny_processor, PUBLISHED[7 * number % len(PUBLISHED)], number)
        for number in numbers
    ]
    assert both([kind == "refused" for kind in found])
