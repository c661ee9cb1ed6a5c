"""Ways to cut the work of clustering into slices, for tests that try all of them."""

import contextlib
from unittest import mock

import pytest

from ppe_npu.backends.cpu import dpc_knn as on_cpu
from ppe_npu.backends.reference import dpc_knn as reference

# By default, in which case a test's tokens are one slice; frame by frame and row by row; and into slices of several
# frames and rows, the last of which is usually shorter.
WHOLE = {"MOST_SLICES": reference.MOST_SLICES}
SINGLY = {"TOKENS_AT_ONCE": 1, "DISTANCES_AT_ONCE": 1, "MOST_SLICES": 1000}
SLICED = {"TOKENS_AT_ONCE": 1, "DISTANCES_AT_ONCE": 1, "MOST_SLICES": 3}
CUTS = pytest.mark.parametrize("cut", [WHOLE, SINGLY, SLICED], ids=["whole", "singly", "sliced"])


@contextlib.contextmanager
def cut_into(cut: dict):
    """Cut the work of both implementations. The CPU's own one finds the nearest tokens in either of two ways; with
    SINGLY it takes the one that it would not choose for so few tokens."""
    own = {"DISTANCES_AT_ONCE": cut.get("DISTANCES_AT_ONCE", on_cpu.DISTANCES_AT_ONCE)}
    own["LEAST_CLASSES"] = 1 if cut is SINGLY else on_cpu.LEAST_CLASSES
    with mock.patch.multiple(reference, **cut), mock.patch.multiple(on_cpu, **own):
        yield
