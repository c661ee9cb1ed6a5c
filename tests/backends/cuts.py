"""How the reference cuts the work of clustering into slices, for tests that try every way."""

from unittest import mock

import pytest

from ppe_npu.backends.reference import dpc_knn as reference

# How the work is cut: as it is, where all of a test's tokens are one slice; frame by frame and row by row; and into
# slices of several frames and rows, the last of which is mostly shorter.
WHOLE = {"MOST_SLICES": reference.MOST_SLICES}
SINGLY = {"TOKENS_AT_ONCE": 1, "DISTANCES_AT_ONCE": 1, "MOST_SLICES": 1000}
SLICED = {"TOKENS_AT_ONCE": 1, "DISTANCES_AT_ONCE": 1, "MOST_SLICES": 3}
CUTS = pytest.mark.parametrize("cut", [WHOLE, SINGLY, SLICED], ids=["whole", "singly", "sliced"])


def cut_into(cut: dict):
    return mock.patch.multiple(reference, **cut)
