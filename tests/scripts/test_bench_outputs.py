"""--output of every benchmark: a place that cannot be written is reported before anything is measured."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pytest
from bench.results import earlier, output_file

from ppe_npu.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_where_numbers_cannot_be_written_is_said_before_they_are_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for text in ("", " ", "folder", "pipe", "file/below.json", "s3://bucket/a.json", "a\0b", "x" * 300):
        with pytest.raises(argparse.ArgumentTypeError):
            output_file(text)
    assert output_file("new/a.json") == "new/a.json"
    assert output_file("~/a.json") == str(tmp_path / "home" / "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "pipe"]


def test_every_benchmark_looks_at_its_output_first():
    for file in SCRIPTS.glob("bench_*.py"):
        for words in re.findall(r'add_argument\("--output"([^)]*)\)', file.read_text()):
            assert "type=output_file" in words, file


@pytest.mark.parametrize("held", ["", "[]", "{", '{"facts": 1}', '{"facts": {}, "rows": 5}', "\udcff"])
def test_a_file_of_something_else_is_not_gone_on_with(tmp_path, held):
    (tmp_path / "a.json").write_bytes(os.fsencode(held))
    with pytest.raises(InputError, match="was measured on another machine or by other settings: name another file"):
        earlier(str(tmp_path / "a.json"), {}, "rows")
    assert earlier(str(tmp_path / "b.json"), {}, "rows") == {"facts": {}, "rows": {}}
