"""How the work of clustering is cut into slices, for tests that try every way."""

import contextlib
from unittest import mock

import pytest

from ppe_npu.backends.cpu import dpc_knn as on_cpu
from ppe_npu.backends.reference import dpc_knn as reference

# How the work is cut: as it is, where all of a test's tokens are one slice; frame by frame and row by row; and into
# slices of several frames and rows, the last of which is mostly shorter.
WHOLE = {"MOST_SLICES": reference.MOST_SLICES}
SINGLY = {"TOKENS_AT_ONCE": 1, "DISTANCES_AT_ONCE": 1, "MOST_SLICES": 1000}
SLICED = {"TOKENS_AT_ONCE": 1, "DISTANCES_AT_ONCE": 1, "MOST_SLICES": 3}
CUTS = pytest.mark.parametrize("cut", [WHOLE, SINGLY, SLICED], ids=["whole", "singly", "sliced"])


@contextlib.contextmanager
def cut_into(cut: dict):
    """The CPU's own way has two ways to find the nearest tokens: the cut into single rows tries the other one."""
    own = {"DISTANCES_AT_ONCE": cut.get("DISTANCES_AT_ONCE", on_cpu.DISTANCES_AT_ONCE)}
    own["LEAST_CLASSES"] = 1 if cut is SINGLY else on_cpu.LEAST_CLASSES
    with mock.patch.multiple(reference, **cut), mock.patch.multiple(on_cpu, **own):
        yield
