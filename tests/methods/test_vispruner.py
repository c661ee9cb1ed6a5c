"""VisPruner against recorded runs of the published code, and its thinning against a naive one."""

import pytest
import torch
from recorded import case_names, cases

from ppe_npu.methods import get
from ppe_npu.methods.choosing import cosines, share_of
from ppe_npu.methods.thinning import important_and_diverse
from ppe_npu.methods.view import View

RECORDED = cases("vispruner")


@pytest.mark.parametrize("case", case_names("vispruner"))
def test_the_choice_is_the_published_one(case):
    settings, given = RECORDED[case]
    method = get("vispruner", important_ratio=settings["important_ratio"])
    view = View.of(tokens=given["tokens"], tower_saliency=given["attention"].mean(1), num_kept=settings["budget"])
    assert torch.equal(method.group(view).representatives, given["kept"])
    important = given["attention"].mean(1).sort(dim=1, descending=True, stable=True).indices
    count = given["important"].shape[1]
    assert share_of(view.num_kept, settings["important_ratio"]).tolist() == [count] * len(important)
    assert torch.equal(important[:, :count].sort().values, given["important"].sort().values)


def thinned(alike, order, wanted):
    """The tokens of one cell that the thinning rule, restated naively, leaves of `order`."""
    while len(order) > wanted:
        even, odd = order[::2], order[1::2]
        going = min(8, len(order) - wanted, len(even))
        even = sorted(even, key=lambda i: -max((float(alike[i, j]) for j in odd), default=-2.0))
        order = even[going:] + odd
    return order


@pytest.mark.parametrize("seed", range(6))
def test_like_tokens_go_by_the_rule_also_where_an_odd_number_is_left(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens, scores = torch.randn(3, 61, 5, generator=generator), torch.rand(3, 61, generator=generator)
    sizes = torch.tensor([61, 38, 2])
    budgets, important = [(30, 7, 1), (3, 38, 2)][seed % 2], torch.tensor([(11, 3, 0), (0, 38, 1)][seed % 2])
    view = View.of(tokens=tokens, valid=torch.arange(61) < sizes[:, None], num_kept=list(budgets))
    kept = important_and_diverse(view, scores, important)
    for cell, (size, budget) in enumerate(zip(sizes.tolist(), budgets)):
        alike = cosines(tokens[cell : cell + 1, :size])[0]
        order = scores[cell, :size].sort(descending=True).indices.tolist()
        first = int(important[cell])
        expected = order[:first] + thinned(alike, order[first:], budget - first)
        assert kept[cell, :budget].tolist() == sorted(expected), cell


@pytest.mark.parametrize(("part", "nearest"), [(0.1, False), (0.15625, True), (0.5, True), (0.5, False), (0.3, True)])
def test_shares_are_those_of_whole_numbers(part, nearest):
    """They are computed exactly, not from a product in fp32 that a device may round in its own way."""
    from fractions import Fraction
    from math import floor

    counts = list(range(1, 3000))
    exact = [Fraction(str(part)) * count for count in counts]
    expected = [round(share) if nearest else floor(share) for share in exact]
    assert share_of(torch.tensor(counts), part, nearest).tolist() == expected
