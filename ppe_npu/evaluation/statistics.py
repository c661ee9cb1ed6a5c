"""Statistics of scores: means with intervals, and tests whether two methods differ on the same samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_LEVEL = 0.95  # of every interval
_QUANTILE = 1.959964  # how many standard deviations of a normal distribution such an interval reaches to each side
DRAWS = 2000  # bootstrap resamples of a mean
_FLIPS = 9999  # random sign flips of a permutation test; with the observed signs 10,000
_CHUNK = 2**22  # random numbers in memory at once
_ENUMERATED = 12  # if at most this many samples differ, all 2^n sign flips are enumerated


def wilson(mean: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion at 95 %, such as the fraction of right answers.

    Args:
        mean: the observed proportion, in [0, 1].
        count: number of observations.

    Returns:
        (lower, upper); (0, 1) for a count of 0.
    """
    if count == 0:
        return 0.0, 1.0
    z = _QUANTILE
    centre = mean + z * z / (2 * count)
    half = z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def by_type(scored: Iterable[tuple[str, float | None]]) -> dict[str, dict[str, float]]:
    """(type, score) pairs -> per type {"accuracy", "count", "low", "high"}, in order of first appearance."""
    groups: dict[str, list[float | None]] = {}
    for kind, score in scored:
        groups.setdefault(kind, []).append(score)
    return {kind: summary(scores) for kind, scores in groups.items()}


def summary(scores: Sequence[float | None]) -> dict[str, float]:
    """Scores in [0, 1] -> {"accuracy", "count", "low", "high"}; low and high are Wilson's interval at 95 %.

    None is the score of a sample that only a metric over all samples judges; it is not counted.
    """
    known = [score for score in scores if score is not None]
    accuracy = sum(known) / len(known) if known else 0.0
    low, high = wilson(accuracy, len(known))
    return {"accuracy": accuracy, "count": len(known), "low": low, "high": high}


def resamples(count: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Bootstrap resamples as blocks of sample numbers, each of shape [rows, count]; `draws` rows in all.

    The same count and seed give the same rows, so that statistics of two methods on the same samples are paired.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _CHUNK // max(count, 1))
    for start in range(0, draws, block):
        yield generator.integers(0, count, (min(block, draws - start), count))


def bootstrap_means(scores: Sequence[float], draws: int = DRAWS) -> np.ndarray:
    """[draws] means of resampled scores (Efron 1979)."""
    values = np.asarray(scores, dtype=np.float64)
    return np.concatenate([values[rows].mean(1) for rows in resamples(len(values), draws)])


def bootstrap_sums(values: np.ndarray, draws: int) -> np.ndarray:
    """[draws, C] sums of `values` [units, C] over the units of each resample."""
    count = len(values)
    drawn = itertools.chain.from_iterable(resamples(count, draws))
    return np.stack([np.bincount(rows, minlength=count) @ values for rows in drawn])


def interval(replicates: Sequence[float]) -> tuple[float, float]:
    """(lower, upper) bounds of the percentile interval of bootstrap replicates at 95 %."""
    low, high = np.quantile(np.asarray(replicates), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Comparison of a method with a reference on the same samples.

    Attributes:
        mean: mean difference, method minus reference. low, high: its bootstrap interval at 95 %.
        p: two-sided p-value of the hypothesis of no difference. test: name of the test.
        count: number of samples.
    """

    mean: float
    low: float
    high: float
    p: float
    test: str
    count: int


def paired(scores: Sequence[float], reference: Sequence[float]) -> Paired:
    """Compare two methods' scores on the same samples, in the same order.

    If all scores are 0 or 1, the test is McNemar's exact one (a sign test on the samples that only one method got
    right); else a permutation test that flips the signs of the differences (Fisher 1935), exact if few samples differ.

    Raises:
        ValueError: the two have different numbers of scores, or none.
    """
    if len(scores) != len(reference) or not len(scores):
        raise ValueError(f"{len(scores)} scores and {len(reference)} of the reference are no pairs")
    values, others = np.asarray(scores, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    differences = values - others
    low, high = interval(bootstrap_means(differences))
    if np.isin(values, (0, 1)).all() and np.isin(others, (0, 1)).all():
        p, test = sign_test(int((differences > 0).sum()), int((differences < 0).sum())), "exact McNemar"
    else:
        p, test = permutation_test(differences), "sign-flip permutation"
    return Paired(float(differences.mean()), low, high, p, test, len(differences))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of these wins and losses if both were equally likely; on pairs this is McNemar's exact test."""
    total, fewer = wins + losses, min(wins, losses)
    term = tail = 1  # C(total, i), from i = 0
    for number in range(1, fewer + 1):
        term = term * (total - number + 1) // number
        tail += term
    return min(1.0, 2 * tail / 2**total) if total else 1.0


def permutation_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean difference this far from 0, if each difference were as likely with either sign."""
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    seen = abs(values.sum()) * (1 - 1e-12)  # sums that differ only by rounding count as equal
    if len(values) <= _ENUMERATED:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(values))))
        return float((abs(signs @ values) >= seen).mean())
    generator, extreme = np.random.default_rng(0), 0
    block = max(1, _CHUNK // len(values))
    for start in range(0, _FLIPS, block):
        signs = generator.integers(0, 2, (min(block, _FLIPS - start), len(values)), dtype=np.int8)
        extreme += int((abs(values.sum() - 2 * (signs @ values)) >= seen).sum())
    return (extreme + 1) / (_FLIPS + 1)
