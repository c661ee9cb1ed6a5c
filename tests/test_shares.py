"""Shares of whole numbers."""

import math

import pytest

from ppe_npu.utils.shares import part_of


@pytest.mark.parametrize(
    ("count", "share", "rule", "exact", "as_floats"),
    [
        (100, 0.07, math.ceil, 7, 8),
        (100, 0.29, math.floor, 29, 28),
        (90, 0.35, round, 32, 31),  # 31.5, and half goes to even
        (9, 1 / 3, math.floor, 3, 3),
        (6, 5 / 6, math.ceil, 5, 5),
        (7, 1.0, math.floor, 7, 7),
        (10**6, 1e-300, math.ceil, 0, 1),
    ],
)
def test_a_part_is_what_was_meant_or_what_floats_give(count, share, rule, exact, as_floats):
    assert part_of(count, share, rule) == exact
    assert part_of(count, share, rule, floats=True) == as_floats
