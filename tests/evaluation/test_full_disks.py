"""An evaluation whose disk is full stops with one line that names the file, and loses nothing."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from result_folders import SAMPLES, check_whole, lines, run
from stand_in import Counting, Instant

from ppe_npu import files
from ppe_npu.errors import FileError
from ppe_npu.evaluation import lines as shared
from ppe_npu.evaluation.report import collect, write_report


@pytest.mark.parametrize("name", ["predictions.jsonl", "claims.jsonl"])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, name):
    """The disk has room for two and a half of the appended lines."""
    write = shared.write_whole

    def full(file, data):
        if name not in file.name or len(data) < 200:
            return write(file, data)
        write(file, data[: data.index(b"\n", data.index(b"\n") + 1) + 20] if b"\n" in data[:-1] else data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Wordy(Counting):
        def __getitem__(self, number):
            return {**super().__getitem__(number), "index": f"{number:0200}"}

    class Words(Instant):
        def answer(self, prepared):
            done = super().answer([{"index": 0}] * len(prepared))
            done.answers = [sample["GT"] for sample in prepared]
            return done

    monkeypatch.setattr(shared, "write_whole", full)
    with pytest.raises(FileError, match=rf"{name} cannot be written \(no space is left on its disk\): make room there"):
        run(tmp_path, benchmark=Wordy(SAMPLES), answers=Words())
    kept = (tmp_path / "predictions.jsonl").read_bytes() if name == "predictions.jsonl" else b""
    assert kept.count(b"\n") == (2 if kept else 0)
    assert kept.endswith(b"\n") or not kept
    monkeypatch.setattr(shared, "write_whole", write)
    results = run(tmp_path, benchmark=Wordy(SAMPLES), answers=Words())
    assert (results["samples"], results["errors"], results["accuracy"]["accuracy"]) == (SAMPLES, 0, 1.0)
    assert (tmp_path / "predictions.jsonl").read_bytes().startswith(kept)
    assert len(lines(tmp_path)) == SAMPLES


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("name", ["settings.json", "results.json", "report.md", "report.json", "report.png"])
@pytest.mark.ci
def test_whatever_file_finds_no_room_is_named_and_leaves_what_was_there(tmp_path, monkeypatch, name):
    folder = tmp_path
    run(folder)
    write_report(collect(folder), folder / "report.md", "Title")
    before = (folder / name).read_bytes()
    write = files.write_whole

    def full(file, data):
        if f".{name}." in file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data)

    monkeypatch.setattr(files, "write_whole", full)
    with pytest.raises(FileError, match=rf"{name} cannot be written \(no space is left on its disk\): make room"):
        write_report([run(folder)], folder / "report.md", "Other title")
    if name == "results.json":  # every run writes it again
        assert not (folder / name).exists()
    else:
        assert (folder / name).read_bytes() == before
    assert not list(folder.glob(".*.tmp"))
    monkeypatch.setattr(files, "write_whole", write)
    check_whole(folder, run(folder))


def test_a_process_that_may_write_no_more_says_so_and_the_next_one_goes_on(tmp_path):
    """RLIMIT_FSIZE, as `ulimit -f` sets it; half a line is removed at once, or by the next run."""
    command = [sys.executable, str(Path(__file__).with_name("stand_in.py")), str(tmp_path), "40", "8", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    done = subprocess.run(command, env=environment, preexec_fn=limit, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "predictions.jsonl cannot be written (it exceeds the file size limit)" in done.stderr
    kept = lines(tmp_path)
    assert kept
    results = run(tmp_path, 40)
    check_whole(tmp_path, results, 40)
    assert lines(tmp_path)[: len(kept)] == kept
