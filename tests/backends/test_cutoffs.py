"""If the scores of two tokens tie within rounding at the cutoff, either may be a centre; everywhere else the centres
are those of the exact scores."""

import functools

import pytest
import torch
from devices import DEVICES
from tolerances import assert_chosen, eps

pytest.importorskip("triton")

from kernel_device import DEVICE, on_device
from triton_interpreter import repair

from ppe_npu.backends import device
from ppe_npu.backends.cpu import dpc_knn as cpu
from ppe_npu.backends.cuda import dpc_knn as cuda
from ppe_npu.backends.npu import dpc_knn as ascend
from ppe_npu.backends.parity.compare import partition_distance
from ppe_npu.backends.reference import dpc_knn as reference

pytestmark = pytest.mark.half

repair()
INTERPRETED = pytest.mark.skipif(DEVICE.type != "cpu", reason="kernels for Ascend are not compiled for a GPU")
WAYS = {"reference": reference, "cpu": cpu, "cuda": on_device(cuda), "ascend": ascend}
TOKENS, CHANNELS, BUDGET, NEIGHBOURS = 40, 24, 12, 5


def exact(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N] fp64 score of each token of x [N, C], and [N] a bound of its error in fp32, for any order of summation.

    d^2 is off by the largest rounding error of its products; the score is half the logarithm of the squared distance to
    the nearest denser token, less the mean d^2 to the k nearest.
    """
    x = x.double()
    d = (x[:, None] - x[None]).square().mean(-1)
    norms = (x - x.mean(0)).square().mean(-1)
    near, mates = d.sort(1)
    density = -near[:, :NEIGHBOURS].mean(1)
    denser = density[None] > density[:, None]
    nearest = d.masked_fill(~denser, torch.inf).min(1)
    found = nearest.values < torch.inf
    delta = torch.where(found, nearest.values, torch.finfo(torch.float32).max)
    off = reference.largest_error(CHANNELS, torch.float32) * (norms[:, None] + norms[None])
    score = 0.5 * delta.log() + density
    apart = torch.where(found, 0.5 * off.gather(1, nearest.indices[:, None])[:, 0] / delta, 0)
    sums = off.gather(1, mates[:, 1:NEIGHBOURS]).sum(1) / NEIGHBOURS
    return score, apart + sums + (NEIGHBOURS + 4) * eps(torch.float32) * (density.abs() + (0.5 * delta.log()).abs())


def tied(seed: int, gap: float = 0.0) -> torch.Tensor:
    """[N, C] fp32 tokens in which the last score within the budget and the first outside are `gap` apart, because the
    second of the two tokens has been moved towards the mean."""
    x = torch.randn(TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = exact(x)[0].argsort(descending=True)
    last, moved = order[BUDGET - 1].item(), order[BUDGET].item()
    away = x[moved] - x.mean(0)

    def behind(share: float) -> torch.Tensor:
        y = x.clone()
        y[moved] += share * away
        score = exact(y)[0]
        return score[last] - score[moved] - gap

    low, high = 0.0, 0.0
    while behind(high) > 0 and high > -0.9:
        high -= 0.01  # nearer to the mean it is denser, so its score rises
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if behind(middle) > 0 else (low, middle)
    x[moved] += high * away
    return x.float()


@functools.cache
def ties(gap: float = 0.0) -> list[torch.Tensor]:
    """Those of 30 draws in which the two scores are next to each other, and the ranks around them are clear."""
    out = []
    for seed in range(30):
        x = tied(seed, gap)
        score, error = exact(x)
        ordered, order = score.sort(descending=True)
        steps = -ordered.diff()
        clear = steps > error[order[1:]] + error[order[:-1]]
        clear[BUDGET - 1] = True
        close = steps[BUDGET - 1] <= gap + error[order[BUDGET]] + error[order[BUDGET - 1]]
        if close and clear[BUDGET - 3 : BUDGET + 2].all():
            out.append(x)
    return out


def centres(x: torch.Tensor, budget: int, where: str, way: str) -> tuple[list[int], torch.Tensor]:
    neighbours, budgets = torch.tensor([NEIGHBOURS]), torch.tensor([budget])
    given = (x[None], None, budgets, budget, neighbours, False)
    given = [part.to(where) if isinstance(part, torch.Tensor) else part for part in given]
    with device.exact_matmul():
        found, labels = WAYS[way].dpc_knn(*given)
    return found[0].tolist(), labels.cpu()


PLACES = [("cpu", way) for way in ("reference", "cpu", "cuda")] + [pytest.param("cpu", "ascend", marks=INTERPRETED)]


@pytest.mark.parametrize(("where", "way"), [*PLACES, *((where, "reference") for where in DEVICES[1:])])
def test_a_tie_within_rounding_may_go_either_way_at_the_cutoff_alone(where, way):
    several = ties()
    assert len(several) >= 5
    for x in several if way in ("reference", "cpu") else several[:1]:
        score, error = exact(x)
        order = score.argsort(descending=True).tolist()
        for budget in (BUDGET - 3, BUDGET - 1, BUDGET + 1):  # the two are both outside, or both inside
            assert set(centres(x, budget, where, way)[0]) == set(order[:budget])
        found, labels = centres(x, BUDGET, where, way)
        assert_chosen(found, score, error)
        assert set(found) in [set(order[:BUDGET]), {*order[: BUDGET - 1], order[BUDGET]}]
        # In both cases, every token joins the nearest of the centres that were found.
        d = (x.double()[:, None] - x.double()[None, found]).square().sum(-1)
        own = d.argmin(1)
        own[found] = torch.arange(BUDGET)
        assert partition_distance(labels, own[None]) == 0


def test_what_rounding_does_not_explain_is_told():
    (x, *_) = ties()
    score, error = exact(x)
    order = score.argsort(descending=True).tolist()
    assert_chosen(order[:BUDGET], score, error)
    assert_chosen([*order[: BUDGET - 1], order[BUDGET]], score, error)  # the tie
    for wrong in ([*order[: BUDGET - 1], order[BUDGET + 1]], [*order[: BUDGET - 2], *order[BUDGET - 1 : BUDGET + 1]],
                  [*order[: BUDGET - 1], order[0]]):  # fmt: skip
        with pytest.raises(AssertionError):
            assert_chosen(wrong, score, error)
    clear = order[:3] if score[order[2]] - score[order[3]] > 2 * error.max() else order[:4]
    with pytest.raises(AssertionError):  # a tie elsewhere is none at this cutoff
        assert_chosen([*clear[:-1], order[BUDGET]], score, error)
