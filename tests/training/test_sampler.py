"""The order of records."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ppe_npu.training.sampler import EpochSampler


@given(st.lists(st.integers(1, 9999), max_size=300), st.integers(1, 8), st.integers(0, 3), st.booleans())
def test_every_record_comes_once_an_epoch_and_the_same_way_again(lengths, per_step, epoch, grouped):
    make = lambda: list(EpochSampler(len(lengths), 5, lambda: epoch, lengths if grouped else None, per_step))  # noqa: E731
    order = make()
    whole, more = order[: len(lengths)], order[len(lengths) :]
    assert sorted(whole) == list(range(len(lengths)))
    assert len(order) % per_step == 0
    assert len(more) < per_step
    assert more == (whole * per_step)[: len(more)], "an epoch's last step is filled up from its beginning"
    assert order == make()


def test_epochs_and_seeds_differ():
    orders = [list(EpochSampler(50, seed, lambda epoch=epoch: epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_step_holds_records_of_like_length():
    lengths = [(7919 * n) % 1000 for n in range(400)]
    order = list(EpochSampler(400, 0, lambda: 0, lengths, per_step=8))
    spreads = [max(step) - min(step) for step in (
        [lengths[n] for n in order[at : at + 8]] for at in range(0, 400, 8)
    )]  # fmt: skip
    assert max(spreads) < 60, "of 1,000"
    firsts = [lengths[order[at]] for at in range(0, 400, 8)]
    assert firsts != sorted(firsts, reverse=True), "steps themselves stay in random order"
