"""The choices and the arithmetic of IPCV, on plain tensors."""

import numpy as np
import pytest
import torch
from tolerances import assert_near

from ppe_npu.methods import IPCV
from ppe_npu.methods.leaving import nearest_rows


def states(length=60, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, 16, generator=generator, dtype=dtype)


@pytest.mark.parametrize("keep", [0.01, 0.35, 0.8])
def test_those_stay_that_were_changed_most_of_each_pool(keep):
    before, now = states()
    pools = (20, 1, 39)
    leaving = IPCV(keep=keep, neighbors=4).choose(before, now, pools)
    rows, at = [], 0
    for size in pools:
        changes = (now - before)[at : at + size].norm(dim=1)
        rows += sorted((changes.argsort(descending=True)[: max(int(size * keep), 1)] + at).tolist())
        at += size
    assert leaving.rows.tolist() == rows
    assert sorted([*rows, *leaving.removed.tolist()]) == list(range(60))


def test_equal_changes_go_by_place():
    now = torch.zeros(9, 4)
    assert IPCV(keep=0.5).choose(now, now, (9,)).rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_neighbours_are_those_at_the_least_distance(count):
    others, rows = states()
    expected = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").argsort(dim=1)[:, :count]
    found = nearest_rows(rows + 1000, others + 1000, count)  # a common offset costs no accuracy
    assert found.tolist() == expected.tolist()


def test_of_equal_neighbours_the_first_are_taken():
    others = states()[0].repeat(3, 1)[:150].float()
    rows = others[[3, 59, 17]]
    assert nearest_rows(rows, others, 2).tolist() == [[3, 63], [59, 119], [17, 77]]


@pytest.mark.parametrize("pools", [(60,), (2, 18, 40)])
def test_rebuilding_is_the_mean_change_of_neighbours(pools):
    """Also in a pool with fewer staying patches than `neighbors`, and with the change made in the compact rows."""
    before, start = states()
    moved = start + states(seed=1)[0]
    leaving = IPCV(keep=0.3, neighbors=5).choose(before, start, pools)
    compact = leaving.compact(start)
    assert_near(leaving.full(compact), start, roundings=12)
    kept = len(leaving.rows)
    found = leaving.full(torch.cat([moved[leaving.rows], compact[kept:]]))
    assert torch.equal(found[leaving.rows], moved[leaving.rows])
    for place, row in enumerate(leaving.removed.tolist()):
        pool = next(size for size, end in zip(pools, np.cumsum(pools)) if row < end)
        near = leaving.rows[leaving.neighbours[place, : min(5, max(int(pool * 0.3), 1))]]
        change = (moved[near] - start[near]).mean(0)
        assert_near(found[row], start[row] + change, roundings=24, size=moved.abs().max())


def test_a_pool_does_not_hang_on_the_others():
    before, now = states(dtype=torch.float32)
    both = IPCV(neighbors=3).choose(before, now, (25, 35))
    for first, size in ((0, 25), (25, 35)):
        own = slice(first, first + size)
        alone = IPCV(neighbors=3).choose(before[own], now[own], (size,))
        mine = (both.rows >= first) & (both.rows < first + size)
        assert (both.rows[mine] - first).tolist() == alone.rows.tolist()
        start = int(mine.nonzero()[0])
        left = (both.removed >= first) & (both.removed < first + size)
        assert (both.neighbours[left] - start).tolist() == alone.neighbours.tolist()


def test_borders_count_what_stands_before_them_and_in_the_release_at_them():
    rows, borders = np.array([0, 3, 4, 8, 9]), [0, 4, 8, 12]
    assert IPCV().borders(rows, borders).tolist() == [0, 2, 3, 5]
    assert IPCV(released=True).borders(rows, borders).tolist() == [0, 3, 4, 5]
    assert IPCV(released=True).borders(rows, borders, pools=[4, 8]).tolist() == [0, 2, 4, 5]  # a pool ends at 4


def test_the_choice_is_made_in_fp32_whatever_the_rows_are():
    before, now = (part.bfloat16() for part in states(dtype=torch.float32))
    low, wide = (
        IPCV().choose(*(part.to(dtype) for part in (before, now)), (60,)) for dtype in (torch.bfloat16, torch.float32)
    )
    assert torch.equal(low.rows, wide.rows)
    assert torch.equal(low.neighbours, wide.neighbours)
    compact = low.compact(now)
    assert compact.dtype == torch.bfloat16


def test_all_tokens_come_out_of_the_tower():
    assert IPCV().kept(7) == 7
    assert [IPCV(keep=0.35).stay(size) for size in (1, 2, 100, 144)] == [1, 1, 35, 50]


@pytest.mark.ci
def test_what_is_rebuilt_has_derivatives_of_any_order_and_the_same_bits_without():
    before, now = states(12)
    leaving = IPCV(keep=0.5, neighbors=3).choose(before, now, (12,))

    def there_and_back(x):
        return leaving.full(leaving.compact(x.sin()))

    x = now.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(there_and_back, x)
    _, tangent = torch.func.jvp(there_and_back, (now,), (torch.ones_like(now),))
    assert torch.isfinite(tangent).all()
    with torch.no_grad():
        assert_near(there_and_back(x), there_and_back(now.clone().requires_grad_()).detach(), roundings=2**5)
