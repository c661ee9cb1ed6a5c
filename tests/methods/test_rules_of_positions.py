"""Rules of positions against naive ones, one group at a time, and the table of mean rotations by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_grouping import random_grouping
from tolerances import assert_equal, assert_near

from ppe_npu.config import CompressionConfig
from ppe_npu.engine.rotary import rotary_table
from ppe_npu.errors import InputError
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.positions import rule_named, rule_names
from ppe_npu.methods.positions.base import MEAN, MEAN_ANGLE
from ppe_npu.methods.positions.entries import members

WIDE = 4  # columns of the raster of these tests' tokens
CHANNELS = (0,) * 4 + (1,) * 6
NEW = ("extent", "frequency", "on_grid", "by_size", "quantiles")


def places(count: int) -> torch.Tensor:
    """[2, count] row and column of each token."""
    return torch.stack([torch.arange(count) // WIDE, torch.arange(count) % WIDE])


def evenly(mine: list[int], used: int) -> list[int]:
    """`used` members spread evenly over the group, last first; a single one is the last member."""
    at = [int(i * (len(mine) - 1) / (used - 1) + 0.5) for i in range(used)] if used > 1 else [len(mine) - 1]
    return [mine[place] for place in at][::-1]


def in_turn(listed: list[int], k: int) -> list[int]:
    return [listed[j % len(listed)] for j in range(k)]


def in_words(rule: str, mine: list[int], own: int, at: torch.Tensor, k: int) -> list[list[int]]:
    """The k places that a group keeps on each axis. mine: its members in raster order; own: the representative."""
    if rule == "frequency":
        slow = k // 2
        chosen = [own] * (k - slow) + (in_turn(evenly(mine, min(slow, len(mine))), slow) if slow else [])
    elif rule == "by_size":
        chosen = in_turn(evenly(mine, min(k, next(side for side in range(99) if side * side >= len(mine)))), k)
    elif rule == "on_grid":
        mean = at[:, mine].double().mean(1)
        off = {token: round(float((at[:, token].double() - mean).abs().sum()) * len(mine)) for token in mine}
        chosen = [min(mine, key=lambda token: (off[token], token))] * k
    else:
        out = []
        for axis in range(len(at)):
            sorted_ = sorted(at[axis, mine].tolist())
            if rule == "quantiles":
                share = [(k - 1 - j) / (k - 1) for j in range(k)] if k > 1 else []
                out.append([sorted_[int(s * (len(mine) - 1) + 0.5)] for s in share] or [sorted_[(len(mine) - 1) // 2]])
                continue
            low, high = sorted_[0], sorted_[-1]
            middle = min((at[axis, token].item() for token in mine), key=lambda value: abs(2 * value - low - high))
            corners = [[high, high, low, low], [high, low, high, low]][axis]
            points = {1: [middle], 2: [high, low], 3: [high, low, middle], 4: corners}.get(k, [*corners, middle])
            out.append(in_turn(points, k))
        return out
    return [at[axis, chosen].tolist() for axis in range(len(at))]


def kept_places(grouping, k, rule, tokens, at) -> torch.Tensor:
    """[axes, F, M, k] places of the chosen members."""
    found = members(grouping, k, rule, tokens, positions=at)
    if rule_named(rule).by_axis:
        return torch.stack([at[axis][own] for axis, own in enumerate(found.chunk(len(at), dim=-1))])
    return at[:, found]


@given(seed=st.integers(0, 10_000), k=st.integers(1, 7), order=st.sampled_from(["raster", "score"]))
def test_new_rules_follow_their_words(seed, k, order):
    tokens, grouping, budgets = random_grouping(seed, order=order)
    at = places(tokens.shape[1])
    for rule in NEW:
        found = kept_places(grouping, k, rule, tokens, at)
        for frame in range(tokens.shape[0]):
            for group in range(int(budgets[frame])):
                mine = [n for n in range(tokens.shape[1]) if grouping.labels[frame, n] == group]
                own = int(grouping.representatives[frame, group])
                assert found[:, frame, group].tolist() == in_words(rule, mine, own, at, k), (rule, frame, group)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 5))
def test_every_rule_keeps_places_of_a_groups_own_members(seed, k):
    tokens, grouping, budgets = random_grouping(seed)
    at = places(tokens.shape[1])
    for rule in rule_names():
        found = kept_places(grouping, k, rule, tokens, at)
        for frame, budget in enumerate(budgets.tolist()):
            for group in range(budget):
                mine = (grouping.labels[frame] == group).nonzero()[:, 0]
                for axis in range(len(at)):
                    assert set(found[axis, frame, group].tolist()) <= set(at[axis, mine].tolist()), rule


@given(seed=st.integers(0, 10_000), k=st.integers(2, 5))
def test_in_one_dimension_quantiles_are_the_spread_where_there_are_k(seed, k):
    tokens, grouping, _ = random_grouping(seed)
    line = torch.arange(tokens.shape[1])[None]
    one, other = (members(grouping, k, rule, tokens, positions=line) for rule in ("quantiles", "spread"))
    enough = (grouping.counts >= k)[:, :, None]
    assert_equal(torch.where(enough, one, 0), torch.where(enough, other, 0))


def test_a_second_merge_takes_the_box_of_the_boxes():
    """Axis by axis: rows kept by two tokens are joined with rows, and columns with columns."""
    at = places(16)
    labels = torch.tensor([[0, -1, -1, 0, -1, -1, -1, -1, 1, -1, -1, -1, 1, -1, 1, -1]])
    first = Grouping.of(labels, torch.tensor([[0, 8]]))
    held = members(first, 4, "extent", None, positions=at)
    assert held.shape == (1, 2, 8)
    both = Grouping.of(torch.tensor([[0, 0]]), torch.tensor([[0]]))
    again = members(both, 4, "extent", None, held, at)[0, 0]
    assert at[0][again[:4]].tolist() == [3, 3, 0, 0]
    assert at[1][again[4:]].tolist() == [3, 0, 3, 0]


def mean_by_hand(rows: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """[B, S, D / 2] complex128 mean rotation of rows [axes, K, B, S], each distinct place counted once."""
    _, k, samples, length = rows.shape
    out = torch.zeros(samples, length, len(CHANNELS), dtype=torch.complex128)
    for sample in range(samples):
        for place in range(length):
            distinct = sorted({tuple(rows[:, j, sample, place].tolist()) for j in range(k)})
            for channel, axis in enumerate(CHANNELS):
                turns = [
                    torch.polar(torch.tensor(1.0).double(), at[axis] * inv_freq[channel].double()) for at in distinct
                ]
                out[sample, place, channel] = sum(turns) / len(turns)
    return out


def test_a_mean_rotation_is_the_mean_of_each_place_once():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 4, (2, 3, 2, 9), generator=generator)
    inv_freq = torch.rand(len(CHANNELS), generator=generator)
    own = rows.flatten(0, 1)
    expected = mean_by_hand(rows, inv_freq)
    cos, sin = rotary_table(own, inv_freq, CHANNELS, table=MEAN)
    half = len(CHANNELS)
    assert_equal(cos[..., :half], cos[..., half:])
    # Errors: an angle of up to 3 x 1 radian rounds once, its cosine once, the sum three times.
    assert_near(cos[..., :half], expected.real, roundings=3 + 4, size=1)
    assert_near(sin[..., :half], expected.imag, roundings=3 + 4, size=1)
    unit = expected / expected.abs()
    cos, sin = rotary_table(own, inv_freq, CHANNELS, table=MEAN_ANGLE)
    shortest = expected.abs().min().item()  # the rounded mean is divided by its length
    assert_near(cos[..., :half], unit.real, roundings=3 + 6, size=1 / shortest)
    assert_near(sin[..., :half], unit.imag, roundings=3 + 6, size=1 / shortest)


@pytest.mark.parametrize("table", [MEAN, MEAN_ANGLE])
def test_of_one_place_the_mean_is_its_rotation(table):
    """So text, and tokens that no merge has touched, get their usual rotation."""
    rows = torch.randint(0, 50, (2, 1, 7), generator=torch.Generator().manual_seed(0))
    inv_freq = torch.rand(len(CHANNELS), generator=torch.Generator().manual_seed(1))
    plain = rotary_table(rows, inv_freq, CHANNELS)
    for found, expected in zip(rotary_table(rows.repeat_interleave(4, 0), inv_freq, CHANNELS, table=table), plain):
        assert_near(found, expected, roundings=0 if table == MEAN else 4)


def test_rotations_that_cancel_leave_the_first_ones_angle():
    rows = torch.tensor([2, 0])[:, None, None]
    cos, sin = rotary_table(rows, torch.tensor([torch.pi / 2] * 2), (0, 0), table=MEAN_ANGLE)
    assert_near(cos, torch.full_like(cos, -1), roundings=4)
    assert_near(cos.square() + sin.square(), torch.ones_like(cos), roundings=4)


def test_rules_are_named_in_settings_and_say_what_they_do():
    assert rule_names()[:4] == ("nearest", "spread", "last", "nearest_first")
    assert set(NEW) < set(rule_names())
    for name in rule_names():
        config = CompressionConfig.from_text(f"ppe:members={name}")
        assert config.rule is rule_named(name)
        assert len(config.rule.what) > 20
        assert CompressionConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="members='corner': choose one of nearest, spread"):
        CompressionConfig.preset("ppe", members="corner")
