"""scripts/device_check.sh, rehearsed without a GPU: what it runs, and that it goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "device_check.sh"
# In python's place: notes its arguments; fails where the parts' words tell it to; sleeps where they tell it to.
STAND_IN = """#!/bin/sh
case "$*" in *int\\(60*) exec {python} "$@";; esac
echo "$*" >> {calls}
case "$*" in *bench_ops*) exit 3;; *"parts decode"*) exec sleep 300;; esac
"""
PARTS = ["facts", "kernels", "operators", "prefill", "decode", "train", "parity", "bundle", "no-sync"]


def check(folder: Path, **environment: str) -> tuple[int, dict]:
    command = ["bash", SCRIPT, folder / "out"]
    clean = {name: value for name, value in os.environ.items() if name not in ("OUT", "DEVICE", "TINY", "MINUTES")}
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False, timeout=600)
    summary = folder / "out" / "summary.json"
    assert summary.is_file(), done.stderr
    return done.returncode, json.loads(summary.read_text())


def stand_in(folder: Path) -> Path:
    python, calls = folder / "python3", folder / "calls"
    python.write_text(STAND_IN.format(python=sys.executable, calls=calls))
    python.chmod(0o755)
    return python


@pytest.mark.slow
def test_every_part_runs_although_one_fails_and_one_never_ends(tmp_path):
    code, summary = check(tmp_path, PYTHON=str(stand_in(tmp_path)), MINUTES="0.2")
    assert code == 1
    parts = [part for part in summary["parts"] if part["part"] != "nvidia-smi"]
    assert [part["part"] for part in parts] == PARTS
    exits = {part["part"]: part["exit"] for part in parts}
    assert exits["facts"] == exits["kernels"] == exits["prefill"] == 0
    assert exits["operators"] == 3
    assert exits["decode"] == 124
    assert exits["train"] == exits["no-sync"] == -1  # the hung part has taken the time that there was
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all("--device cuda" in line for line in calls if "bench_" in line or "ppe_npu.cli" in line)
    assert len(list((tmp_path / "out").iterdir())) <= 8


@pytest.mark.slow
def test_it_runs_whole_on_a_cpu(tmp_path):
    """The commands are right: their first run on a GPU is not their first run."""
    code, summary = check(tmp_path, PYTHON=sys.executable, DEVICE="cpu", TINY="1", MINUTES="9")
    assert {part["part"]: part["exit"] for part in summary["parts"]} == dict.fromkeys(PARTS[:-1], 0)
    assert code == 0
    out = tmp_path / "out"
    assert {row["op"] for row in json.loads((out / "ops.json").read_text())["rows"]} == {"group_mean"}
    assert len(json.loads((out / "prefill.json").read_text())["parts"]) == 3
    assert json.loads((out / "facts.json").read_text())["torch"]
    assert "agree" in (out / "log.txt").read_text()
    assert len(list(out.iterdir())) <= 8
