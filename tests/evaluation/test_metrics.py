"""Scores of answers, by hand."""

from __future__ import annotations

import pytest

from ppe_npu.evaluation.metrics import by_type, exact_match, summary, wilson


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


@pytest.mark.parametrize(
    # The values of Wilson (1927) as tabled by others: 0 of 10, 5 of 10, 10 of 10, 81 of 263 (Newcombe 1998, example a).
    ("right", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson(right, count, low, high):
    assert wilson(right / count, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_nothing_is_known_of_no_samples():
    assert wilson(0.0, 0) == (0.0, 1.0)
    assert summary([]) == {"accuracy": 0.0, "count": 0, "low": 0.0, "high": 1.0}


def test_types_keep_their_order():
    found = by_type([("row", 1.0), ("col", 0.0), ("row", 0.0)])
    assert list(found) == ["row", "col"]
    assert (found["row"]["accuracy"], found["row"]["count"]) == (0.5, 2)
