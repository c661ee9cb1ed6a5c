"""The paths that scripts/test_machines.py and scripts/run_tests.py name exist."""

from pathlib import Path

import run_tests
import test_machines

ROOT = Path(__file__).resolve().parents[2]


def test_the_tests_that_are_run_under_other_code_paths_exist():
    words = [word for runs in run_tests.RUNS.values() for run in runs for word in run_tests.arguments(run)]
    paths = [word for word in words if word.startswith("tests/")]
    assert len(paths) > 20
    names = [name.partition("::")[0] for name in (*test_machines.QUICK_TESTS, *paths)]
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert set(test_machines.QUICK) <= set(test_machines.PATHS)
