"""Faults in a benchmark's own code: the sample or the metric is named, and all else is answered and scored."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from stand_in import Counting, Instant
from video_files import write_video

from ppe_npu.cli.failures import first_error
from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks
from ppe_npu.evaluation.benchmarks import readers
from ppe_npu.evaluation.rows import encode_rows
from ppe_npu.evaluation.runner import Evaluation
from ppe_npu.evaluation.samples import _image_size, _video_facts, conversation

SAMPLES = 6


class Odd(Counting):
    """Counting, with a sample 2 that a test changes."""

    name = "odd"

    def __init__(self, change) -> None:
        super().__init__(SAMPLES)
        self.change = change

    def __getitem__(self, number: int) -> dict:
        sample = super().__getitem__(number)
        return self.change(sample) if number == 2 else sample


def run(folder, benchmark, answers=None):
    with Evaluation(answers or Instant(), benchmark, folder, 4, bar=False) as evaluation:
        return evaluation.run()


def rows(folder) -> dict:
    found = [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]
    assert len({row["index"] for row in found}) == len(found)
    return {row["index"]: row for row in found}


def stops(sample):
    sys.exit(3)


def endless():
    endless = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda sample: {**sample, "GT": {1, 2}}, "GT cannot be written as JSON"),
        (lambda sample: {**sample, "GT": b"3"}, "GT cannot be written as JSON"),
        (lambda sample: {**sample, "GT": ["3", object()]}, "GT cannot be written as JSON"),
        (lambda sample: {**sample, "GT": endless()}, "GT cannot be written as JSON"),
        (lambda sample: {**sample, "type": np.zeros(3)}, "type cannot be written as JSON"),
        (lambda sample: {**sample, "prompt": "half \ud83d"}, "prompt contains a lone surrogate (half a character)"),
        (lambda sample: {**sample, "GT": "half \ud83d"}, "GT contains a lone surrogate (half a character)"),
        (lambda sample: {**sample, "index": np.int64(2)}, "is a int64"),
        (lambda sample: {**sample, "index": None}, "is a NoneType"),
        (lambda sample: {**sample, "index": [2]}, "is a list"),
        (lambda sample: [sample], "TypeError"),
        (stops, "SystemExit: 3"),
    ],
)
def test_a_sample_that_no_file_can_hold_is_named_and_the_others_are_scored(tmp_path, change, words):
    for _ in range(2):  # it is asked again and fails again: nothing is lost, nothing stops
        results = run(tmp_path, Odd(change))
        assert (results["samples"], results["errors"]) == (SAMPLES, 1)
        assert results["accuracy"]["accuracy"] == pytest.approx((SAMPLES - 1) / SAMPLES)
        failed = [row for row in rows(tmp_path).values() if "error" in row]
        assert len(failed) == 1
        assert words in failed[0]["error"]
        assert failed[0]["index"] in (2, "row 2")
    mended = run(tmp_path / "mended", Counting(SAMPLES))
    assert mended["errors"] == 0


def test_numbers_of_numpys_are_plain_ones_in_the_files(tmp_path):
    class Typed(Odd):
        def score(self, answer, sample):
            return np.float32(answer == "3") if sample["index"] == 2 else 1

    results = run(tmp_path, Typed(lambda sample: {**sample, "GT": np.int64(3), "type": np.str_("t")}))
    assert (results["errors"], results["accuracy"]["accuracy"]) == (0, 1.0)
    assert rows(tmp_path)[2]["GT"] == 3


def test_a_stop_from_the_keyboard_stops_and_loses_nothing(tmp_path):
    def interrupt(sample):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Odd(interrupt))
    assert run(tmp_path, Odd(dict))["errors"] == 0


@pytest.mark.parametrize("value", [7.0, -1, float("nan"), float("inf"), "much", {}, [1, 2], 1j])
def test_a_score_outside_its_range_fails_its_sample_alone(tmp_path, value):
    class Scored(Counting):
        def score(self, answer, sample):
            return value if sample["index"] == 2 else 1.0

    for _ in range(2):
        results = run(tmp_path, Scored(SAMPLES))
        assert (results["samples"], results["errors"], results["accuracy"]["count"]) == (SAMPLES, 1, SAMPLES)
        assert "error" in rows(tmp_path)[2]
        assert rows(tmp_path)[2]["answer"] == "3"
        assert results["accuracy"]["accuracy"] == pytest.approx((SAMPLES - 1) / SAMPLES)


def test_a_score_that_rounding_carried_over_is_taken(tmp_path):
    class Scored(Counting):
        def score(self, answer, sample):
            return 1 + 1e-12

    assert run(tmp_path, Scored(SAMPLES))["accuracy"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "metrics() of counting returned a NoneType"),
        ([0.5], "metrics() of counting returned a list"),
        ({"share": float("nan")}, "metrics() of counting returned 'share': nan"),
        ({"share": "much"}, "metrics() of counting returned 'share': 'much'"),
        ({"share": None}, "metrics() of counting returned 'share': None"),
        ({"other": 0.5}, "metrics() of counting returned no 'share'"),
        ({3: 0.5}, "metrics() of counting returned 3"),
        ({}, "metrics() of counting returned no 'share'"),
        (SystemExit(4), "SystemExit: 4"),
        (KeyError("x"), "KeyError"),
    ],
)
def test_metrics_without_sense_are_said_in_the_results(tmp_path, given, words):
    class Measured(Counting):
        headline = "share"

        def metrics(self, rows):
            if isinstance(given, BaseException):
                raise given
            return given

    results = run(tmp_path, Measured(SAMPLES))
    assert words in results["metrics_error"]
    assert "metrics" not in results
    assert (results["accuracy"]["accuracy"], results["errors"]) == (1.0, 0)


@pytest.mark.parametrize("unit", [lambda row: 1 / 0, lambda row: [row["index"]], stops])
def test_a_unit_that_raises_loses_no_results(tmp_path, unit):
    class Units(Counting):
        def metrics(self, rows):
            return {"share": 0.5}

        def unit(self, row):
            return unit(row)

    results = run(tmp_path, Units(SAMPLES))
    assert results["metrics_error"]
    assert results["samples"] == SAMPLES


@pytest.mark.parametrize(
    "sums", [lambda sums: 3.0, lambda sums: np.full(len(sums), np.nan), lambda sums: stops(sums), lambda sums: None]
)
def test_resamples_without_sense_cost_the_interval_alone(tmp_path, sums):
    class Summed(Counting):
        headline = "share"

        def metrics(self, rows):
            return {"share": 0.5}

        def unit(self, row):
            return row["index"]

        def addends(self, rows):
            return {row["index"]: (1.0, 1.0) for row in rows}

        def from_sums(self, values):
            return sums(values)

    results = run(tmp_path, Summed(SAMPLES))
    assert results["headline"]["value"] == 0.5
    assert "failed on a resample: " in results["headline"]["why"]
    assert "replicates" not in results["headline"]


def test_a_benchmark_whose_file_exits_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(InputError, match=r"mine\.py cannot be imported \(mine\.py:2\): SystemExit: 3"):
        benchmarks.load(f"{tmp_path / 'mine.py'}:Mine", tmp_path)


TEXTS = [readers.read_json, readers.read_jsonl, readers.read_table, readers.read_text]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("read", [*TEXTS, readers.read_srt])
def test_a_pipe_is_not_waited_for_where_data_is_read(tmp_path, read):
    os.mkfifo(tmp_path / "data.tsv")
    with pytest.raises(InputError, match=r"data\.tsv is a folder, a pipe or a device"):
        read(tmp_path / "data.tsv")


@pytest.mark.parametrize("read", TEXTS)
def test_a_mark_of_byte_order_is_no_part_of_the_data_and_another_encoding_is_named(tmp_path, read):
    plain, marked, other = (tmp_path / name for name in ("plain.tsv", "marked.tsv", "other.tsv"))
    plain.write_bytes(b'{"a": 1}\n')
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    other.write_bytes('{"a": "grün"}\n'.encode("latin-1"))
    assert read(marked) == read(plain)
    with pytest.raises(InputError, match=r"other\.tsv is .*download it again"):
        read(other)


@pytest.mark.timeout(30)
def test_a_pipe_is_not_waited_for_when_lengths_are_told(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert _image_size(str(tmp_path / "pipe.png")) == (448, 448)
    assert _video_facts(str(tmp_path / "pipe.png"))[0] == 16


@pytest.mark.parametrize("path", [5, b"a.png", ["a.png", 5], True])
def test_a_path_that_is_none_is_named(path):
    """A number would be read as the open file with that descriptor."""
    with pytest.raises(InputError, match=r"image_path .* is a (int|bytes|bool): give the path of a file"):
        conversation({"index": 0, "prompt": "row red", "image_path": path})


@pytest.mark.timeout(30)
def test_no_other_file_is_opened_when_the_length_of_a_video_is_told(tmp_path, monkeypatch):
    """Once a list of files was followed, even one that names itself, and a name with a colon was taken for a URL."""
    monkeypatch.chdir(tmp_path)
    write_video("seg.mp4", frames=8)
    os.link("seg.mp4", "10:30.mp4")
    assert _video_facts("10:30.mp4") == (8, 10.0, 64, 48)
    Path("list.mp4").write_text("ffconcat version 1.0\nfile seg.mp4\nduration 0.8\n")
    Path("live.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.8,\nseg.mp4\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "live.mp4"):
        assert _video_facts(name) == (16, 1.0, 448, 448)


def test_lines_of_json_end_at_line_feeds_alone(tmp_path):
    """Texts from the web contain other line separators, which JSON leaves as they are."""
    text = "one\u2028two\x85three\u2029"
    file = tmp_path / "rows.jsonl"
    file.write_bytes(encode_rows([{"index": 0, "prompt": text}, {"index": 1, "prompt": text, "error": "a fault"}]))
    assert [row["prompt"] for row in readers.read_jsonl(file)] == [text, text]
    assert first_error(file) == "sample 1: a fault"
