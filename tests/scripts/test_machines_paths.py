"""The paths that scripts/test_machines.py names exist."""

from pathlib import Path

import newest
import test_machines

ROOT = Path(__file__).resolve().parents[2]


def test_the_tests_that_are_run_under_other_code_paths_exist():
    names = [name.partition("::")[0] for name in (*test_machines.QUICK_TESTS, *newest.TESTS)]
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert set(test_machines.QUICK) <= set(test_machines.PATHS)
