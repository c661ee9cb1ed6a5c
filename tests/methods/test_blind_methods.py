"""The controls on single cells: exact budgets, complete partitions, and each rule against a naive one."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_npu.methods.avg_pool import avg_pool
from ppe_npu.methods.random import random
from ppe_npu.methods.uniform import uniform

FUNCTIONS = {
    "random": random,
    "uniform": lambda *cell: uniform(*cell[:2]),
    "avg_pool": lambda *cell: avg_pool(*cell[:2]),
}
GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


def grid(frames: int, height: int, width: int) -> np.ndarray:
    """[n, 3] places of a full grid, in raster order."""
    return np.indices((frames, height, width)).reshape(3, -1).T


@st.composite
def cells(draw):
    """Places of a frame, of an event's frames, or of what an earlier merge left; and a budget."""
    places = grid(*draw(GRIDS))
    if draw(st.booleans()):
        kept = draw(st.sets(st.integers(0, len(places) - 1), min_size=1))
        places = places[sorted(kept)]
    if draw(st.booleans()):  # a list of ratios keeps the places of some tokens twice
        places = np.concatenate([places, places[::2]])
    return places, draw(st.integers(1, len(places)))


@settings(max_examples=150)
@given(cell=cells(), method=st.sampled_from(sorted(FUNCTIONS)), seed=st.integers(0, 2**63 - 1))
def test_every_budget_is_kept_exactly_by_a_partition_around_representatives(cell, method, seed):
    places, budget = cell
    representatives, labels = FUNCTIONS[method](places, budget, seed)
    assert (np.diff(representatives) > 0).all()
    assert 0 <= representatives[0] <= representatives[-1] < len(places)
    assert len(representatives) == budget
    assert labels[representatives].tolist() == list(range(budget))  # each in its own group, so none is empty
    assert labels.shape == (len(places),)
    assert 0 <= labels.min() <= labels.max() < budget


@given(cell=cells(), method=st.sampled_from(["random", "uniform"]))
def test_the_others_join_the_nearest_in_space_then_in_time_then_the_first(cell, method):
    places, budget = cell
    representatives, labels = FUNCTIONS[method](places, budget, 0)
    for token, label in enumerate(labels):
        if token not in representatives:
            away = places[representatives] - places[token]
            near = [(int(h * h + w * w), int(t * t), number) for number, (t, h, w) in enumerate(away)]
            assert label == min(near)[2]


@given(count=st.integers(1, 40), data=st.data())
def test_uniform_takes_the_middle_of_every_run(count, data):
    budget = data.draw(st.integers(1, count))
    chosen = uniform(grid(1, 1, count), budget)[0]
    middles = [Fraction(count, budget) * (run + Fraction(1, 2)) for run in range(budget)]
    assert chosen.tolist() == [int(middle) for middle in middles]


# -- random -----------------------------------------------------------------------------------------------------------


def test_random_is_a_hash_that_every_device_and_version_shares():
    assert random(grid(1, 4, 6), 6, 0)[0].tolist() == EXPECTED[0]
    assert random(grid(1, 4, 6), 6, 1)[0].tolist() == EXPECTED[1]
    assert random(grid(2, 4, 6)[24:], 6, 0)[0].tolist() == EXPECTED[2]  # the second frame


EXPECTED = ([0, 12, 15, 19, 21, 22], [9, 13, 15, 16, 21, 22], [2, 6, 10, 13, 14, 23])


def test_random_choices_are_even_independent_and_nested():
    places, budget, seeds = grid(1, 6, 6), 12, 400
    chosen = np.zeros((seeds, 36))
    for seed in range(seeds):
        picked = random(places, budget, seed)[0]
        chosen[seed, picked] = 1
        assert set(random(places, 5, seed)[0]) <= set(picked)  # a smaller budget chooses among these
    # Expected of a fair draw: 133 +- 9.4 choices per token, and 400 * 12 * 11 / (36 * 35) = 42 +- 6 per pair of tokens.
    assert np.abs(chosen.sum(0) - seeds * budget / 36).max() < 4 * 9.4
    together = chosen.T @ chosen
    assert np.abs(together[np.triu_indices(36, 1)] - 41.9).max() < 5 * 6.2


# -- avg_pool ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "side"), [(6, 8, 2), (2, 2, 2), (9, 6, 3), (8, 8, 4)])
def test_windows_are_square_where_sides_and_budget_allow_it(height, width, side):
    representatives, labels = avg_pool(grid(1, height, width), height * width // side**2)
    rows, columns = np.divmod(np.arange(height * width), width)
    assert labels.tolist() == (rows // side * (width // side) + columns // side).tolist()
    middle = (side - 1) // 2
    assert [representatives[0] // width, representatives[0] % width] == [middle, middle]


def is_whole(members: set[tuple[int, int]]) -> bool:
    """Whether these squares are connected through shared sides."""
    reached, open_ = set(), [next(iter(members))]
    while open_:
        row, column = open_.pop()
        if (row, column) in members and (row, column) not in reached:
            reached.add((row, column))
            open_ += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return reached == members


@settings(max_examples=100)
@given(height=st.integers(1, 12), width=st.integers(1, 12), share=st.floats(0.01, 1.0))
def test_windows_are_whole_and_of_near_equal_area(height, width, share):
    count = height * width
    budget = max(1, round(count * share))
    labels = avg_pool(grid(1, height, width), budget)[1]
    for group in range(budget):
        assert is_whole({divmod(int(token), width) for token in np.flatnonzero(labels == group)})
    sizes = np.bincount(labels)
    assert 5 * sizes.max() <= 8 * -(-count // budget)
    assert 2 * sizes.min() >= count // budget


def test_frames_are_pooled_to_runs_and_an_events_frames_place_by_place():
    representatives, labels = avg_pool(grid(7, 1, 1), 3)
    assert labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert representatives.tolist() == [1, 3, 5]
    labels = avg_pool(grid(3, 4, 5), 20)[1]
    assert labels.tolist() == list(range(20)) * 3


def test_pooled_windows_are_pooled_again_as_windows():
    """In a cascade, 8 x 12 tokens reduced to a quarter twice become windows of 4 x 4."""
    places = grid(1, 8, 12)
    first, labels = avg_pool(places, 24)
    second = avg_pool(places[first], 6)[1]
    rows, columns = np.divmod(np.arange(96), 12)
    assert second[labels].tolist() == (rows // 4 * 3 + columns // 4).tolist()
