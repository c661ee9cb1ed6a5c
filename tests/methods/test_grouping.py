"""A grouping: the order of its groups, their means, and the members whose positions are kept."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_near

from ppe_npu import backends
from ppe_npu.methods.dpc_knn import DPCKNN
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.positions.entries import members
from ppe_npu.methods.view import View


def random_grouping(seed: int, frames=3, count=11, groups=4, order="raster"):
    """Random tokens, a random partition of frames of different lengths, and [F] the number of groups of each (at most
    `groups`)."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(frames, count, 6, generator=g)
    sizes = torch.randint(groups, count + 1, (frames,), generator=g)
    budgets = torch.randint(1, groups + 1, (frames,), generator=g)
    centers = torch.stack([torch.cat([torch.randperm(int(n), generator=g)[:groups]]) for n in sizes])
    labels = torch.full((frames, count), -1)
    for f in range(frames):
        labels[f, : sizes[f]] = torch.randint(0, int(budgets[f]), (int(sizes[f]),), generator=g)
        labels[f, centers[f, : budgets[f]]] = torch.arange(int(budgets[f]))
    return tokens, Grouping.from_centers(centers, labels, budgets, order), budgets


def naive_members(tokens, grouping, frame, group, k, rule):
    """The k members of one group by `rule`, restated naively."""
    mine = [n for n in range(tokens.shape[1]) if grouping.labels[frame, n] == group]
    center = int(grouping.representatives[frame, group])
    distance = {n: float((tokens[frame, n] - tokens[frame, center]).square().sum()) for n in mine}
    nearest = sorted(mine, key=lambda n: (n != center, distance[n], n))[:k]
    if rule == "last":
        listed = mine[::-1]
    elif rule == "nearest":
        listed = sorted(nearest)[::-1]
    elif rule == "nearest_first":
        listed = nearest
    else:
        size = min(k, len(mine))
        places = [int(i * (len(mine) - 1) / (size - 1) + 0.5) for i in range(size)] if size > 1 else [len(mine) - 1]
        listed = [mine[p] for p in places][::-1]
    return [listed[j % len(listed)] for j in range(k)]


@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), order=st.sampled_from(["raster", "score"]))
def test_members_follow_their_rule_in_words(seed, k, order):
    tokens, grouping, budgets = random_grouping(seed, order=order)
    for rule in ("last", "spread", "nearest", "nearest_first"):
        picked = members(grouping, k, rule, tokens)
        for frame in range(tokens.shape[0]):
            for group in range(int(budgets[frame])):
                expected = naive_members(tokens, grouping, frame, group, k, rule)
                assert picked[frame, group].tolist() == expected, (rule, frame, group)


def test_of_equal_tokens_the_representative_is_the_nearest():
    """So with k = 1 the kept position is the representative's own, as with positions="keep_one"."""
    tokens = torch.ones(1, 5, 2)
    labels = torch.zeros(1, 5, dtype=torch.long)
    grouping = Grouping.from_centers(torch.tensor([[3]]), labels, torch.tensor([1]), "raster")
    assert members(grouping, 1, "nearest", tokens).tolist() == [[[3]]]
    assert members(grouping, 2, "nearest_first", tokens).tolist() == [[[3, 0]]]


@given(seed=st.integers(0, 10_000))
def test_groups_are_a_partition_in_raster_order_of_their_representatives(seed):
    _, grouping, budgets = random_grouping(seed)
    for frame, budget in enumerate(budgets.tolist()):
        mine = grouping.representatives[frame, :budget]
        assert mine.tolist() == sorted(set(mine.tolist()))
        assert grouping.labels[frame, mine].tolist() == list(range(budget))
        assert grouping.counts[frame].sum() == (grouping.labels[frame] >= 0).sum()
        assert (grouping.counts[frame, :budget] > 0).all()
        assert (grouping.counts[frame, budget:] == 0).all()


def test_apply_gives_the_means():
    tokens, grouping, _ = random_grouping(3)
    merged = grouping.apply(tokens)
    for frame in range(tokens.shape[0]):
        for group in range(grouping.counts.shape[1]):
            mine = tokens[frame][grouping.labels[frame] == group].double()
            expected = mine.mean(0) if len(mine) else torch.zeros(tokens.shape[-1], dtype=torch.float64)
            assert_near(merged[frame, group], expected, roundings=len(mine) + 1, size=tokens[frame].abs().max())


@pytest.mark.parametrize(("most", "expected"), [(5, [1, 1, 1, 2, 5, 5, 5]), (3, [1, 1, 3, 3, 3, 3, 3])])
def test_number_of_neighbors(most, expected, monkeypatch):
    """Fewer in frames that keep few tokens; three are those of the released code's later ratios."""
    seen, cluster = [], backends.dpc_knn
    monkeypatch.setattr(backends, "dpc_knn", lambda *given, **more: seen.append(given[4]) or cluster(*given, **more))
    DPCKNN(neighbors=most).group(View.of(tokens=torch.randn(7, 9, 4), num_kept=list(range(1, 8))))
    assert seen[0].tolist() == expected


def test_no_gradient_flows_into_the_choice_of_groups():
    tokens = torch.randn(2, 9, 4, requires_grad=True)
    grouping = DPCKNN().group(View.of(tokens=tokens, num_kept=[3, 5]))
    assert not grouping.labels.requires_grad
    grouping.apply(tokens).sum().backward()
    # Each token's gradient is one over the size of its group.
    sizes = grouping.counts.gather(1, grouping.labels)
    assert_near(tokens.grad, (1 / sizes)[:, :, None].expand_as(tokens), roundings=2)
