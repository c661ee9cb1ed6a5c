"""Tests draw the same numbers on every machine and in every order, and other numbers if they are asked to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# What one test draws, with more or less of the package imported before it, after other tests or alone.
PROGRAM = """
import random
import numpy as np
import torch
from hypothesis import given, strategies as st

drawn = []

def test_others():
    torch.rand(3), random.random(), np.random.rand()

def test_unseeded():
    drawn.append((torch.rand(2).tolist(), random.random(), np.random.rand()))

@given(st.integers(), st.floats(), st.permutations(range(4)))
def test_given(number, real, order):
    drawn.append((number, repr(real), order))

def test_tell(capsys):
    with capsys.disabled():
        print("drawn", drawn)
"""

# What tests/conftest.py does, without transformers.
CONFTEST = """
import draws
draws.load_profile()

def pytest_runtest_setup():
    draws.seed_everything()
"""


def drawn(folder: Path, imported: str = "", tests: str = "", **environment: str) -> str:
    (folder / "test_given.py").write_text(f"{imported}\n{PROGRAM}")
    (folder / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", tests]
    paths = f"{TESTS}{os.pathsep}{TESTS.parent}"
    environ = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "random", **environment}
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environ, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(line.split("drawn ")[1] for line in done.stdout.splitlines() if "drawn " in line)


@pytest.fixture(scope="module")
def pinned(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("pinned"), PPE_TEST_SEED="0")


@pytest.mark.slow
def test_what_was_imported_and_what_ran_before_changes_no_draw(pinned, tmp_path):
    more = "import ppe_npu.backends.parity.compare, ppe_npu.evaluation.statistics, ppe_npu.engine.positions"
    assert drawn(tmp_path, more, "not others", PPE_TEST_SEED="0") == pinned


@pytest.mark.slow
def test_another_seed_draws_others(pinned, tmp_path):
    assert drawn(tmp_path, PPE_TEST_SEED="7") != pinned
