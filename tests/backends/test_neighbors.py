"""Densities over any number of neighbours: every device sums all of them, or the call is refused with the reason."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dpc_knn import naive

from ppe_npu import backends
from ppe_npu.backends import dispatch
from ppe_npu.errors import InputError
from ppe_npu.methods.dpc_knn import DPCKNN
from ppe_npu.methods.view import View

pytestmark = pytest.mark.half


def drawn(frames: int, count: int, seed: int) -> torch.Tensor:
    """[F, N, 8] fp64 tokens, so that rounding decides nothing; odd seeds give some copies."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, count, 8, generator=g, dtype=torch.float64)
    copies = torch.randint(0, count // 2 + 1, (frames, count, 1), generator=g).expand_as(x)
    return x.gather(1, copies) if seed % 2 else x


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@settings(derandomize=True, max_examples=15)
@given(seed=st.integers(0, 999), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3), data=st.data())
def test_all_neighbours_are_summed(implementation, seed, sizes, data):
    x = drawn(len(sizes), max(sizes), seed)
    valid = torch.arange(x.shape[1]) < torch.tensor(sizes)[:, None]
    neighbors = [data.draw(st.integers(1, size)) for size in sizes]
    budgets = [data.draw(st.integers(1, size)) for size in sizes]
    arguments = x, valid, torch.tensor(budgets), max(budgets), torch.tensor(neighbors)
    most = max(neighbors) + data.draw(st.sampled_from([0, 3, 10**6]))
    centers, labels = backends.dpc_knn(*arguments, most_neighbors=most, implementation=implementation)
    for f, (n, m, k) in enumerate(zip(sizes, budgets, neighbors)):
        assert (centers[f, :m].tolist(), labels[f, :n].tolist()) == naive(x[f, :n], m, k, False)


@pytest.mark.parametrize("neighbors", [1, 3, 5, 6, 10, 29, 30, 31, 10**9])
@pytest.mark.parametrize("count", [40, 70])
def test_the_method_takes_as_many_as_its_setting_says(neighbors, count):
    """In a cell that keeps fewer tokens than the setting, three neighbours are used. Frames of 40 tokens run on the
    reference, those of 70 on the CPU's own implementation."""
    x, used = drawn(2, count, seed=4), neighbors if neighbors <= 30 else 3
    found = DPCKNN(neighbors=neighbors, order="score").group(View.of(tokens=x, num_kept=30))
    for f in range(2):
        centers, labels = naive(x[f], 30, used, False)
        assert (found.representatives[f].tolist(), found.labels[f].tolist()) == (centers, labels)


def test_more_than_the_host_was_told_is_refused_where_it_may_look():
    x, six = torch.randn(1, 9, 4), torch.tensor([6])
    with pytest.raises(InputError, match=r"num_neighbors must be from 1 to 5 \(most_neighbors\)"):
        backends.dpc_knn(x, None, six, 6, six)
    with pytest.raises(InputError, match=r"most_neighbors is 6\.0, a float: give a whole number"):
        backends.dpc_knn(x, None, six, 6, six, most_neighbors=6.0)
    backends.dpc_knn(x, None, six, 6, six, most_neighbors=6)


@pytest.mark.parametrize("kind", ["cuda", "npu"])
def test_kernels_give_way_to_the_specification(kind, on_cpu, monkeypatch, caplog):
    pytest.importorskip("triton")
    on_cpu(kind, "triton" if kind == "cuda" else "triton_ascend", "reference")
    x, six = torch.randn(1, 9, 4), torch.tensor([6])
    found = backends.dpc_knn(x, None, six, 6, six, most_neighbors=6)
    assert dispatch.chosen() == {"dpc_knn": "reference"}
    assert "is not used: the Triton kernels take at most 5 neighbours" in caplog.text
    assert (found[0][0].tolist(), found[1][0].tolist()) == naive(x[0].double(), 6, 6, False)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("said", [0, 1])
def test_a_frame_without_tokens_has_no_groups_and_changes_no_other(implementation, said):
    x = drawn(3, 12, seed=2)
    valid = torch.arange(12) < torch.tensor([12, 0, 7])[:, None]
    numbers = torch.tensor([5, said, 4])
    x[1] = torch.nan
    centers, labels = backends.dpc_knn(x, valid, numbers, 5, numbers, implementation=implementation)
    assert labels[1].tolist() == [-1] * 12
    assert ((centers >= 0) & (centers < 12)).all()
    for f, (n, k) in {0: (12, 5), 2: (7, 4)}.items():
        assert (centers[f, :k].tolist(), labels[f, :n].tolist()) == naive(x[f, :n], k, k, False)
    with pytest.raises(InputError, match="budgets must be from 1 to 5"):
        backends.dpc_knn(x, valid, numbers.clamp(min=2), 5, numbers, implementation=implementation)
