"""Fixtures of the evaluation tests: benchmarks on their tiny data."""

import benchmark_files
import pytest

from ppe_npu.evaluation import benchmarks


@pytest.fixture(autouse=True)
def undrawn(request):
    """Skips drawing a report's picture unless a test requests `drawn`."""
    if "drawn" not in request.fixturenames:
        request.getfixturevalue("undrawn_report")


@pytest.fixture
def drawn():
    """Lets a report draw its picture."""


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load(name) -> the benchmark over its tiny data, each made once."""
    root, loaded = tmp_path_factory.mktemp("data"), {}

    def get(name):
        if name not in loaded:
            loaded[name] = benchmarks.load(name, benchmark_files.write_all(root, name))
        return loaded[name]

    return get
