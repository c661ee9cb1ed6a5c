"""The clustering against the algorithm in words, in fp64, one token at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppe_npu.backends.reference.dpc_knn import dpc_knn


def naive(x: torch.Tensor, budget: int, k: int) -> tuple[list[int], list[int]]:
    """Centres by descending score, and the rank of every token's centre."""
    n, c = x.shape
    d = [[math.sqrt(float((x[i] - x[j]).square().sum()) / c) for j in range(n)] for i in range(n)]
    rho = [math.exp(-sum(sorted(v * v for v in d[i])[:k]) / k) for i in range(n)]
    farthest = max(max(row) for row in d)
    delta = [min([d[i][j] for j in range(n) if rho[j] > rho[i]] + [farthest]) for i in range(n)]
    centers = sorted(range(n), key=lambda i: -delta[i] * rho[i])[:budget]
    label = [min(range(budget), key=lambda r: d[centers[r]][i]) for i in range(n)]
    for rank, center in enumerate(centers):
        label[center] = rank
    return centers, label


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 0.5, 1.0]), offset=st.sampled_from([0.0, 20.0]))
def test_equals_the_algorithm_in_words(seed, scale, offset):
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(5, 18, (4,), generator=g)
    budgets = torch.stack([torch.randint(1, int(n) + 1, (), generator=g) for n in sizes])
    neighbors = torch.where(budgets >= 5, 5, 1)
    x = torch.randn(4, 17, 8, generator=g, dtype=torch.float64) * scale + offset
    valid = torch.arange(17) < sizes[:, None]
    centers, labels = dpc_knn(x, valid, budgets, int(budgets.max()), neighbors)
    for f in range(4):
        n, m = int(sizes[f]), int(budgets[f])
        expected_centers, expected_labels = naive(x[f, :n], m, int(neighbors[f]))
        assert labels[f, n:].eq(-1).all()
        assert labels[f, :n].max() < m
        if neighbors[f] == 1:
            continue  # every density is 1: all tie, and words leave the order open (see the tie test)
        assert centers[f, :m].tolist() == expected_centers
        assert labels[f, :n].tolist() == expected_labels


def test_ties_go_to_the_lower_index():
    """Equal densities everywhere (k = 1): token 0 is the densest, then the farthest from all before it by delta."""
    x = torch.tensor([[[0.0], [0.0], [10.0], [10.0], [3.0]]])
    centers, labels = dpc_knn(x, None, torch.tensor([3]), 3, torch.tensor([1]))
    # Delta to a lower-indexed (so denser) token: farthest pair 10 for token 0; 0 for 1; 10 for 2; 0 for 3; 3 for 4.
    assert centers.tolist() == [[0, 2, 4]]
    assert labels.tolist() == [[0, 0, 1, 1, 2]]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3])
def test_nothing_underflows_at_any_scale(scale):
    """The ranking of log densities: exp(-d^2) would be 0 for every token from a scale of about 10 on."""
    x = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0)) * scale
    small = dpc_knn(x, None, torch.tensor([10, 10]), 10, torch.tensor([5, 5]))
    exact = dpc_knn(x.double(), None, torch.tensor([10, 10]), 10, torch.tensor([5, 5]))
    assert torch.equal(small[0], exact[0])
    assert torch.equal(small[1], exact[1])
    assert len(set(small[0][0].tolist())) == 10


def test_a_common_offset_does_not_cost_digits():
    x = torch.randn(1, 60, 32, generator=torch.Generator().manual_seed(1))
    plain = dpc_knn(x, None, torch.tensor([20]), 20, torch.tensor([5]))
    moved = dpc_knn(x + 256.0, None, torch.tensor([20]), 20, torch.tensor([5]))
    assert torch.equal(plain[1], moved[1])


def test_budget_of_all_tokens_makes_every_token_its_own_centre_even_among_duplicates():
    x = torch.ones(2, 7, 3)
    centers, labels = dpc_knn(x, None, torch.tensor([7, 7]), 7, torch.tensor([5, 5]))
    assert sorted(centers[0].tolist()) == list(range(7))
    assert centers.gather(1, labels).tolist() == [list(range(7))] * 2


def test_padding_and_frame_mates_change_nothing():
    g = torch.Generator().manual_seed(2)
    x = torch.randn(3, 12, 8, generator=g)
    valid = torch.arange(12) < torch.tensor([12, 7, 9])[:, None]
    budgets, k = torch.tensor([5, 5, 6]), torch.tensor([5, 5, 5])
    junk = torch.where(valid[:, :, None], x, 1e6)
    together = dpc_knn(junk, valid, budgets, 6, k)
    for f, n in enumerate([12, 7, 9]):
        alone = dpc_knn(x[f : f + 1, :n], None, budgets[f : f + 1], int(budgets[f]), k[f : f + 1])
        assert together[0][f, : budgets[f]].tolist() == alone[0][0].tolist()
        assert together[1][f, :n].tolist() == alone[1][0].tolist()
