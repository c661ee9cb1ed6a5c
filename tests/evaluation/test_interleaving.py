"""Interleaved costs: which method is measured when, and the statistics of given times. Nothing is timed here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import near

from ppe_npu.errors import InputError
from ppe_npu.evaluation.interleaving import MOST, against, in_turns, settled, summed_up


def test_all_methods_answer_a_prompt_one_after_the_other_and_who_begins_moves_on():
    calls = []
    runners = {name: lambda prompt, name=name: calls.append((name, prompt)) or len(calls) for name in "abc"}
    found = in_turns(runners, prompts=2, rounds=2)
    names = ["".join(name for name, _ in calls[at : at + 3]) for at in range(0, len(calls), 3)]
    assert names == ["abc", "bca", "bca", "cab"]
    assert [prompt for _, prompt in calls[::3]] == [0, 1] * 2
    assert found["a"] == [[1, 6], [9, 11]]  # which call it was
    assert {name: np.shape(turns) for name, turns in found.items()} == dict.fromkeys("abc", (2, 2))


@pytest.mark.parametrize(("prompts", "rounds"), [(0, 1), (1, 0)])
def test_nothing_to_measure_is_refused(prompts, rounds):
    with pytest.raises(InputError, match=f"{prompts} prompts in {rounds} rounds measure nothing"):
        in_turns({"a": int}, prompts, rounds)


def test_there_are_rounds_until_there_are_enough():
    for needed, rounds in ((1, 2), (2, 2), (5, 5), (10**6, 2 * MOST)):
        found = in_turns({"a": int, "b": int}, 3, 2, enough=lambda found, needed=needed: len(found["b"]) >= needed)
        assert {name: np.shape(turns) for name, turns in found.items()} == dict.fromkeys("ab", (rounds, 3))


def test_a_pass_that_takes_long_ends_after_the_least(monkeypatch):
    from types import SimpleNamespace

    from ppe_npu.evaluation import interleaving

    clock = iter(range(0, 10**6, 50))  # seconds; the clock is read before each round
    monkeypatch.setattr(interleaving, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert len(in_turns({"a": int, "b": int}, 1, 5, least=2)["a"]) == 2
    assert len(in_turns({"a": int, "b": int}, 1, 5)["a"]) == 5  # without `least`, all five rounds are run


def noisy(seed, scale=1.0, rounds=5, prompts=8, shaken=0.02):
    """Times on a machine whose speed wanders: the methods share a random factor for each prompt of a round."""
    generator = np.random.default_rng(seed)
    hour = np.exp(generator.normal(0, 0.5, (rounds, prompts)))
    jitter = np.exp(generator.normal(0, shaken, (2, rounds, prompts)))
    return 0.1 * hour * jitter[0], 0.1 * scale * hour * jitter[1]


def test_two_identical_methods_are_equal_within_their_interval_however_the_machine_wanders():
    """At 95 %, one in twenty may miss; 7 or more of 40 seeds miss with a chance of 2e-3. Ratios stay within 3 %."""
    found = [against(own, reference) for reference, own in map(noisy, range(40))]
    assert sum(not one["low"] <= 1 <= one["high"] for one in found) < 7
    assert max(100 * abs(one["ratio"] - 1) for one in found) < 3
    assert sum(one["told"] for one in found) < 7


def test_two_identical_methods_on_a_busy_machine_take_more_rounds_and_are_equal():
    """Ten processes on two cores vary each time by an eighth: five rounds give a ratio to within 9 %, not 3 %."""
    missed = 0
    for seed in range(12):
        times = noisy(seed, rounds=5 * MOST, shaken=0.125)
        rounds = next((many for many in range(5, 5 * MOST, 5) if settled(*(part[:many] for part in times))), 5 * MOST)
        assert rounds > 15
        missed += abs(against(*(part[:rounds] for part in times))["ratio"] - 1) >= 0.03
    assert missed < 2  # one in eighty would be allowed, but stopping as soon as it looks settled favours luck
    assert all(settled(*noisy(seed)) for seed in range(12))  # a quiet machine


def test_a_pass_that_is_long_has_three_times_the_rounds_at_most(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ppe_npu.evaluation.interleaving.time.monotonic", lambda: now[0])

    def answer(prompt):
        now[0] += 50.0

    found = in_turns({"a": answer}, 1, rounds=5, enough=lambda found: False)
    assert len(found["a"]) == 16  # five rounds take 250 s; the last one begins at 750 s


def test_prompts_that_gain_differently_are_no_noise():
    reference = np.ones((5, 8))
    assert settled(np.tile(np.linspace(0.3, 0.9, 8), (5, 1)), reference)
    assert settled(np.random.default_rng(0).uniform(0.5, 2, (1, 8)), reference[:1])  # one round shows no scatter


def test_what_is_half_as_long_is_told_however_the_machine_wanders():
    for reference, own in (noisy(seed, scale=0.5) for seed in range(10)):
        found = against(own, reference)
        assert found["low"] <= 0.5 * 1.02
        assert found["high"] >= 0.5 / 1.02
        assert found["told"]


def test_a_difference_within_the_scatter_is_not_told():
    ratios = np.array([[0.7, 1.3, 0.9, 1.5, 1.1, 0.8, 1.2, 1.4]] * 5)  # the middle half: 0.875 to 1.325
    found = against(ratios, np.ones_like(ratios))
    assert found["ratio"] > 1
    assert abs(found["ratio"] - 1) < found["scatter"]
    assert not found["told"]


@settings(derandomize=True, max_examples=30)
@given(st.lists(st.floats(0.01, 10), min_size=6, max_size=6), st.floats(0.1, 10))
def test_the_unit_of_time_does_not_matter_and_a_method_beside_itself_is_one(values, unit):
    times = np.array(values).reshape(2, 3)
    same = against(times, times)
    assert (same["ratio"], same["low"], same["high"], same["told"]) == (1.0, 1.0, 1.0, False)
    other = against(times * unit, times[::-1] * unit)
    assert other["ratio"] == near(against(times, times[::-1])["ratio"], roundings=6)
    assert other["low"] <= other["high"]


def test_a_disturbed_round_moves_no_median():
    reference = np.full((5, 4), 0.1)
    own = np.full((5, 4), 0.05)
    own[2] = 3.0
    assert against(own, reference)["ratio"] == 0.5


def test_times_of_other_rounds_are_no_pairs():
    with pytest.raises(InputError, match=r"\(1, 2\) and \(2, 1\) were not interleaved"):
        against([[1, 2]], [[1], [2]])


def test_every_quantity_of_every_method_is_set_beside_the_reference():
    found = summed_up({"dense": {"ttft": [[2.0]]}, "half": {"ttft": [[1.0]]}}, "dense")
    assert {name: row["ttft"]["ratio"] for name, row in found.items()} == {"dense": 1.0, "half": 0.5}
