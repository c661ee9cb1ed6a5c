"""Intervals of metrics over all samples at the benchmarks' real sizes, from addends that are computed once."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tolerances import sampling_error

from ppe_npu.evaluation.benchmarks.flickr30k import Flickr30k
from ppe_npu.evaluation.benchmarks.mme import MME
from ppe_npu.evaluation.benchmarks.nextqa import NExTOE
from ppe_npu.evaluation.benchmarks.ocrbench import OCRBench
from ppe_npu.evaluation.benchmarks.pope import POPE
from ppe_npu.evaluation.metrics import COGNITION, PERCEPTION, cider
from ppe_npu.evaluation.results import corpus
from ppe_npu.evaluation.statistics import bootstrap_sums

WORDS = [f"w{number}" for number in range(300)]


def caption(dice: random.Random) -> str:
    return " ".join(dice.choices(WORDS, range(len(WORDS), 0, -1), k=11))


def flickr(dice, count=1000):
    for number in range(count):
        truth = [caption(dice) for _ in range(5)]
        words = truth[0].split()[: dice.randint(2, 11)]
        yield {"index": number, "type": None, "GT": truth, "answer": " ".join(words), "score": None}


def pope(dice, count=9000):
    for number in range(count):
        split = ("random", "popular", "adversarial")[number % 3]
        said, true = (dice.choice(("yes", "no")) for _ in range(2))
        row = {"index": f"{split}/{number}", "type": split, "GT": true, "answer": said, "score": float(said == true)}
        yield {**row, "answer": "", "score": 0.0, "error": "a fault"} if number % 50 == 0 else row


def mme(dice, count=2374):
    for number in range(count):
        task = (*PERCEPTION, *COGNITION)[number // 2 % 14]
        yield {"index": f"{task}/{number // 2}.jpg#{number % 2}", "type": task, "score": float(dice.random() < 0.7)}


def ocrbench(dice, count=1000):
    for number in range(count):
        yield {"index": number, "type": f"kind {number % 10}", "score": float(dice.random() < 0.6)}


def nextqa(dice, count=9178):
    for number in range(count):
        row = {"index": f"v_{number}", "type": dice.choice(("CW", "TN", "DL")), "GT": ["a cat"], "answer": "a cat"}
        yield {**row, "score": dice.random()}


class Counted:
    """Counts how often it splits a text, because the real taxonomy is slow: every answer may be split only once."""

    asked = 0

    def words(self, text):
        self.asked += 1
        return text.split()

    def similarity(self, first, second):
        return float(first == second)


CASES = [
    pytest.param(Flickr30k, flickr, marks=pytest.mark.slow),
    (POPE, pope),
    (MME, mme),
    (OCRBench, ocrbench),
    (NExTOE, nextqa),
]


def opened(cls):
    """The benchmark without its data."""
    benchmark = cls.__new__(cls)
    benchmark.taxonomy = Counted()
    return benchmark


@pytest.mark.parametrize(("cls", "make"), CASES)
def test_at_its_real_size_a_metric_has_all_its_resamples(cls, make, monkeypatch):
    monkeypatch.setattr("ppe_npu.evaluation.results._SECONDS", 0.0)  # none for metrics that are recomputed
    benchmark, rows = opened(cls), list(make(random.Random(0)))
    headline = corpus(benchmark, rows)["headline"]
    assert len(headline["replicates"]) == 1000
    assert headline["low"] < headline["value"] < headline["high"]
    off = sampling_error(np.std(headline["replicates"]), 1000)
    assert np.mean(headline["replicates"]) == pytest.approx(headline["value"], abs=off)
    assert benchmark.taxonomy.asked <= 2 * len(rows)  # an answer and its reference


@pytest.mark.parametrize(("cls", "make"), CASES[1:])
def test_sums_give_what_the_metric_gives_on_a_resample(cls, make):
    benchmark, rows = opened(cls), list(make(random.Random(1), 84))
    values = benchmark.addends(rows)
    drawn = random.Random(2).choices(list(values), k=len(values))
    again = [{**row, "copy": n} for n, unit in enumerate(drawn) for row in rows if benchmark.unit(row) == unit]
    sums = np.sum([values[unit] for unit in drawn], axis=0)
    assert benchmark.from_sums(sums) == pytest.approx(benchmark.metrics(again)[benchmark.headline])


def test_captions_keep_their_scores_when_they_are_drawn():
    benchmark, rows = opened(Flickr30k), list(flickr(random.Random(1), 12))
    scores = cider([row["answer"] for row in rows], [row["GT"] for row in rows])
    values = benchmark.addends(rows)
    sums = np.sum([values[0], values[0], values[7]], axis=0)
    assert benchmark.from_sums(sums) == pytest.approx((2 * scores[0] + scores[7]) / 3)


def test_sums_are_of_the_same_resamples_whatever_the_values():
    first, second = np.arange(10.0)[:, None], np.arange(10.0)[:, None] ** 2
    both = bootstrap_sums(np.hstack([first, second]), 50)
    assert both.shape == (50, 2)
    assert (both == np.hstack([bootstrap_sums(first, 50), bootstrap_sums(second, 50)])).all()
    assert both[:, 0].std() == pytest.approx(np.arange(10.0).std() * 10**0.5, rel=sampling_error(0.5**0.5, 50))
