"""Exact matches, worked out by hand."""

from __future__ import annotations

import pytest

from ppe_npu.evaluation.metrics import exact_match


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("ring", "ring", 1),
        (" Ring. ", "ring", 1),
        ("a  red\nring", "a red ring", 1),
        ("STRASSE", "Straße", 1),
        ("rings", "ring", 0),
        ("", "ring", 0),
        (".", "", 1),
        ("3", "3.", 1),
        ("3.5", "35", 0),
    ],
)
def test_exact_match(answer, expected, score):
    assert exact_match(answer, expected) == score
