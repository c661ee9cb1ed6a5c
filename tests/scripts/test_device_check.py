"""scripts/device_check.sh, rehearsed without a GPU: what it runs, and that it goes on after a failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bench_ops
import bench_prefill
import pytest

from ppe_npu.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "device_check.sh"
# Takes python's place: notes its arguments, one per line, then an empty line; fails in one part, hangs in a named one.
STAND_IN = """#!/bin/sh
case "$*" in *int\\(60*) exec {python} "$@";; esac
case "$*" in *facts.json*) set -- facts;; esac
printf '%s\\n' "$@" "" >> {calls}
case "$*" in *bench_ops*) exit 3;; *"parts {hangs}"*) exec sleep 300;; esac
"""
PARTS = ["facts", "kernels", "operators", "prefill", "decode", "train", "picture", "parity", "bundle", "no-sync"]


def check(folder: Path, **environment: str) -> tuple[int, dict]:
    command = ["bash", SCRIPT, folder / "out"]
    clean = {name: value for name, value in os.environ.items() if name not in ("OUT", "DEVICE", "TINY", "MINUTES")}
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False, timeout=2000)
    summary = folder / "out" / "summary.json"
    assert summary.is_file(), done.stderr
    return done.returncode, json.loads(summary.read_text())


def rehearsed(folder: Path, hangs: str = "nothing", **environment: str) -> tuple[int, dict[str, int], list[list[str]]]:
    """(exit code, {part: its exit code}, the arguments of each call of python)."""
    python, noted = folder / "python3", folder / "calls"
    python.write_text(STAND_IN.format(python=sys.executable, calls=noted, hangs=hangs))
    python.chmod(0o755)
    code, summary = check(folder, PYTHON=str(python), **environment)
    parts = {part["part"]: part["exit"] for part in summary["parts"] if part["part"] != "nvidia-smi"}
    assert len(list((folder / "out").iterdir())) <= 8
    return code, parts, [call.splitlines() for call in noted.read_text().split("\n\n") if call]


@pytest.mark.parametrize("environment", [{}, {"DEVICE": "cpu", "TINY": "1"}], ids=["cuda", "tiny"])
def test_every_part_is_a_command_that_its_program_takes(tmp_path, environment):
    """The first run on a GPU must not be the first time that its arguments are parsed."""
    code, parts, calls = rehearsed(tmp_path, **environment)
    assert code == 1
    assert parts == dict.fromkeys(PARTS[: 9 if environment else 10], 0) | {"operators": 3}
    limits = {part["part"]: part["limit"] for part in json.loads((tmp_path / "out/summary.json").read_text())["parts"]}
    assert limits["bundle"] == (360 if environment else 90)  # a shared CPU takes longer than a GPU
    device, cases = environment.get("DEVICE", "cuda"), set()
    for arguments in calls[1:]:
        if arguments[:2] == ["-m", "pytest"]:
            files = [word for word in arguments if word.endswith(".py")]
            assert files
            assert all((ROOT / name).is_file() for name in files)
            continue
        programs = {"scripts/bench_ops.py": bench_ops.parsed, "scripts/bench_prefill.py": bench_prefill.parsed}
        taken = programs.get(arguments[0])
        given = taken(arguments[1:]) if taken else build_parser().parse_args(arguments[2:])
        assert given.device == device
        if taken is bench_prefill.parsed:
            cases |= {(case, part) for case in given.cases for part in given.parts}
    assert {case.partition("-")[0] for case, _ in cases} == {"video", "image"}
    assert len(cases) == 2 * len(bench_prefill.PARTS)


@pytest.mark.slow
def test_every_part_runs_although_one_fails_and_one_never_ends(tmp_path):
    code, parts, _ = rehearsed(tmp_path, hangs="decode", MINUTES="0.2")
    assert code == 1
    assert list(parts) == PARTS
    assert parts["facts"] == parts["kernels"] == parts["prefill"] == 0
    assert parts["operators"] == 3
    assert parts["decode"] == 124
    assert parts["train"] == parts["no-sync"] == -1  # the hung part has used up the time


@pytest.mark.ci
def test_it_runs_whole_on_a_cpu(tmp_path):
    """The first run on a GPU must not be the commands' first run."""
    code, summary = check(tmp_path, PYTHON=sys.executable, DEVICE="cpu", TINY="1", MINUTES="30")
    assert {part["part"]: part["exit"] for part in summary["parts"]} == dict.fromkeys(PARTS[:-1], 0)
    assert code == 0
    out = tmp_path / "out"
    assert {row["op"] for row in json.loads((out / "ops.json").read_text())["rows"]} == {"group_mean"}
    assert len(json.loads((out / "prefill.json").read_text())["parts"]) == 6
    assert json.loads((out / "facts.json").read_text())["torch"]
    assert "agree" in (out / "log.txt").read_text()
    assert len(list(out.iterdir())) <= 8
