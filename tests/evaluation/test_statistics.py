"""Intervals and tests against values from the literature, exact formulas, or their own coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tolerances import printed, sampling_error, share_error

from ppe_npu.evaluation.statistics import (
    bootstrap_means,
    by_type,
    interval,
    paired,
    permutation_test,
    resamples,
    sign_test,
    summary,
    wilson,
)


@pytest.mark.parametrize(
    # The values of Wilson (1927) as tabled by others: 0 of 10, 5 of 10, 10 of 10, 81 of 263 (Newcombe 1998, example a).
    ("right", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson(right, count, low, high):
    assert wilson(right / count, count) == (pytest.approx(low, abs=printed(4)), pytest.approx(high, abs=printed(4)))


def test_nothing_is_known_of_no_samples():
    assert wilson(0.0, 0) == (0.0, 1.0)
    assert summary([]) == {"accuracy": 0.0, "count": 0, "low": 0.0, "high": 1.0}


def test_types_keep_their_order_and_unscored_samples_do_not_count():
    found = by_type([("row", 1.0), ("col", 0.0), ("row", 0.0), ("row", None)])
    assert list(found) == ["row", "col"]
    assert (found["row"]["accuracy"], found["row"]["count"]) == (0.5, 2)


def test_bootstrap_has_the_standard_error_of_the_mean():
    scores = np.random.default_rng(0).random(400)
    means = bootstrap_means(scores, draws=4000)
    assert means.shape == (4000,)
    assert means.mean() == pytest.approx(scores.mean(), abs=sampling_error(scores.std() / math.sqrt(400), 4000))
    assert means.std() == pytest.approx(scores.std() / math.sqrt(400), rel=sampling_error(0.5**0.5, 4000))


def test_bootstrap_is_repeatable_and_pairs_methods():
    scores = np.arange(10.0)
    assert (bootstrap_means(scores, 50) == bootstrap_means(scores, 50)).all()
    # Any two methods get the same resamples: means of differences are differences of means.
    other = scores[::-1] ** 2
    expected = bootstrap_means(scores, 50) - bootstrap_means(other, 50)
    assert bootstrap_means(scores - other, 50).tolist() == pytest.approx(expected.tolist())


def test_resamples_come_in_blocks_that_fit_into_memory(monkeypatch):
    monkeypatch.setattr("ppe_npu.evaluation.statistics._CHUNK", 25)
    blocks = list(resamples(10, 7))
    assert [len(block) for block in blocks] == [2, 2, 2, 1]
    assert all(((block >= 0) & (block < 10)).all() for block in blocks)


def test_interval_leaves_as_much_above_as_below():
    assert interval(range(1001)) == pytest.approx((25, 975))


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = interval(bootstrap_means(generator.random(50) < 0.3, draws=400))
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.98


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),  # both tails together exceed 1
        (0, 5, 2 * 0.5**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (6, 16, 0.0525),  # binom.test(6, 22) in R
        (9, 1, 2 * (1 + 10) / 2**10),
    ],
)
def test_sign_test(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p, abs=printed(4))


def test_sign_test_of_many_agrees_with_the_normal_approximation():
    p = sign_test(2400, 2600)
    z = (abs(2600 - 2400) - 1) / math.sqrt(5000)
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=1 / 5000)  # the next term of its series


def test_permutation_test_of_few_is_exact():
    # Of 2^3 sign flips only +++ and --- are as far from 0.
    assert permutation_test([1.0, 2.0, 3.0]) == 2 / 8
    # A sum of 0 is what every flip reaches.
    assert permutation_test([1.0, 2.0, -3.0]) == 1.0
    assert permutation_test([0.1 + 0.2, -0.3, 0.0]) == 1.0  # equal but for rounding
    assert permutation_test([0.0, 0.0]) == 1.0


def test_permutation_test_of_many_agrees_with_the_t_test():
    differences = np.random.default_rng(3).normal(0.08, 1.0, 800)
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(800))
    p = math.erfc(abs(t) / math.sqrt(2))
    assert permutation_test(differences) == pytest.approx(p, abs=share_error(p, 10_000))  # from 10,000 flips
    assert permutation_test(differences + 1) == 1e-4  # the least that 10,000 flips can say


def test_paired_takes_the_test_that_fits():
    right, wrong = [1.0] * 6 + [0.0] * 4, [0.0] * 6 + [0.0] * 4
    found = paired(right, wrong)
    assert (found.mean, found.test, found.count) == (0.6, "exact McNemar", 10)
    assert found.p == 2 / 2**6
    assert found.low < 0.6 < found.high
    partial = paired([0.5, 0.7, 1.0], [0.1, 0.2, 0.3])
    assert (partial.test, partial.p) == ("sign-flip permutation", 2 / 8)


def test_scores_that_are_no_pairs():
    for scores, reference in (([1.0], [1.0, 0.0]), ([], [])):
        with pytest.raises(ValueError, match="no pairs"):
            paired(scores, reference)
