"""Laws of the original tokens that merged tokens hold, over consecutive merges, and event budgets by hand."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppe_npu.config import MEMBERS, CompressionConfig
from ppe_npu.engine.layout import Standing, lay_out
from ppe_npu.engine.merge import Holding, Tokens, merge
from ppe_npu.engine.spans import PromptLayout, Span
from ppe_npu.methods.events import shared

# Rules that list every available member once and then repeat the list cyclically until there are K.
IN_TURN = ("nearest", "spread", "last", "nearest_first", "mean_angle", "mean_rotation")


def prompt(*frames: tuple[int, int]) -> PromptLayout:
    """One sample: a text token, then each video of (frames, tokens per frame) followed by a text token."""
    visual, spans, feature = [False], [], 0
    for number, (count, tokens) in enumerate(frames):
        spans.append(Span("video", number, (count, 1, tokens), 1.0, sample=0, start=len(visual), feature=feature))
        visual += [True] * (count * tokens) + [False]
        feature += count * tokens
    return PromptLayout(np.ones((1, len(visual)), dtype=bool), np.array([visual]), tuple(spans))


def merged(layout, config, count, seed=0):
    """(features, held, rounds) of the input and of each of `count` merges, each applied to the result of the previous
    one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(span.tokens for span in layout.spans), 8, generator=generator)
    held = torch.arange(len(tokens))[:, None]
    places = torch.stack([torch.arange(len(tokens)) // 5, torch.arange(len(tokens)) % 5])  # two axes, raster order
    out = [(tokens, held, None)]
    config = dataclasses.replace(config, layers=range(count - 1), before_llm=True)
    for stage in lay_out(Standing.of(layout), config.stages)[0]:
        holding = Holding(config.k, config.rule, places)
        rounds, known = merge(stage.rounds, Tokens(tokens, held), holding)
        kept, kept_held = tokens, known.held
        for step in rounds:
            kept = step.apply(kept)
        out.append((kept, kept_held, rounds))
        # The next merge indexes places of the flattened batch.
        texts, rows = len(stage.text), stage.rows.flatten()
        width = kept_held.shape[1]
        tokens = torch.cat([torch.zeros(texts, 8), kept, torch.zeros(1, 8)])[rows]
        held = torch.cat([torch.full((texts, width), -1), kept_held, torch.full((1, width), -1)])[rows]
    return out


@given(
    frames=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 12)), min_size=1, max_size=3),
    rule=st.sampled_from(MEMBERS),
    k=st.integers(1, 5),
    ratio=st.sampled_from([0.2, 0.45, 0.7, 1.0]),
    temporal=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 99),
)
def test_what_a_token_holds_comes_from_the_members_of_its_group(frames, rule, k, ratio, temporal, seed):
    config = CompressionConfig(ratio=ratio, k=k, members=rule, temporal_ratio=temporal)
    layout = prompt(*frames)
    runs = merged(layout, config, 3, seed)
    owner = np.concatenate([np.full(span.tokens, number) for number, span in enumerate(layout.spans)])
    for (_, before, _), (_, held, _) in itertools.pairwise(runs):
        available = set(before.flatten().tolist()) - {-1}
        for row in held.tolist():
            assert set(row) <= available
            assert len({owner[token] for token in row}) == 1  # of one span
            distinct = list(dict.fromkeys(row))
            if rule in IN_TURN:
                assert row == [distinct[i % len(distinct)] for i in range(k)]  # repeated cyclically
            if rule in ("nearest", "spread"):
                assert distinct == sorted(distinct, reverse=True)  # in raster order, last first
    # After the first merge a token holds as many of its members as fit into K.
    first, held = runs[1][2], runs[1][1]
    if temporal is None and rule in IN_TURN:
        sizes = torch.cat([bucket.keep([bucket.groupings[0].counts]) for bucket in first[0].buckets])
        assert [len(set(row)) for row in held.tolist()] == sizes.clamp_max(k).tolist()


@pytest.mark.parametrize("rule", ["nearest", "nearest_first", "spread"])
def test_a_second_merge_fills_k_where_its_members_hold_enough(rule):
    """Six tokens are merged into two groups and then into one, which holds K = 4 of the six, from both groups (but
    `spread` may choose all from one)."""
    config = CompressionConfig(ratio=0.3, k=4, members=rule)
    layout = prompt((1, 6))
    (_, _, _), (_, first, _), (_, second, _) = merged(layout, config, 2)
    assert len(first) == 2
    pools = [set(row) for row in first.tolist()]
    (row,) = second.tolist()
    assert len(set(row)) == min(4, len(pools[0] | pools[1]))
    if rule != "spread":  # the other rules alternate between the members
        assert all(set(row) & pool for pool in pools)


def test_the_released_rule_hands_on_the_last_members_whole_set():
    config = CompressionConfig(ratio=0.3, k=4, members="last", order="score")
    (_, _, _), (_, first, _), (_, second, _) = merged(prompt((1, 6)), config, 2, seed=2)
    assert len(set(first[-1].tolist())) > 1  # otherwise any order would pass
    assert second.tolist() == [first[-1].tolist()]


@pytest.mark.parametrize(
    ("total", "frames", "tokens", "expected"),
    [
        (12, [1, 2, 3], 4, [2, 4, 6]),
        (24, [1, 2, 3], 4, [4, 8, 12]),  # all of them
        (3, [1, 2, 3], 4, [1, 1, 1]),  # at least one each
        (4, [1, 1, 10], 2, [1, 1, 2]),
        (7, [3, 3], 2, [4, 3]),  # of equal remainders, the first gets the extra token
        (10, [1, 5], 2, [2, 8]),
    ],
)
def test_tokens_are_shared_by_events_in_proportion(total, frames, tokens, expected):
    assert shared(total, frames, tokens) == expected


@given(
    frames=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    tokens=st.integers(1, 20),
    share=st.floats(0.01, 1.0),
)
def test_every_event_keeps_at_least_one_token_and_no_more_than_it_has(frames, tokens, share):
    total = max(int(sum(frames) * tokens * share), len(frames))
    out = shared(total, frames, tokens)
    assert sum(out) == total
    assert all(1 <= kept <= count * tokens for kept, count in zip(out, frames))
