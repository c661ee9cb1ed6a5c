"""DivPrune against recorded runs of the published code, and on tokens where that code repeats its choices."""

import pytest
import torch
from recorded import case_names, cases

from ppe_npu.methods import get
from ppe_npu.methods.choosing import cosines
from ppe_npu.methods.divprune import cosine_distances, farthest
from ppe_npu.methods.view import View

RECORDED = cases("divprune")


@pytest.mark.parametrize("case", [name for name in case_names("divprune") if name != "duplicates"])
def test_the_choice_and_its_order_are_the_published_ones(case):
    settings, given = RECORDED[case]
    method = get("divprune", ratio=settings["ratio"])
    count = method.kept(len(given["tokens"]))
    assert count == settings["budget"]
    view = View.of(tokens=given["tokens"][None], num_kept=count)
    assert method.group(view).representatives[0].tolist() == given["kept"].tolist()
    assert farthest(cosine_distances(view.tokens), view)[0].tolist() == given["selected"].tolist()


def test_no_token_is_taken_twice_where_fewer_are_distinct_than_wanted():
    """The published code returns only 7 of the 10 distinct tokens here. All 10 must come first, and then the first of
    the others."""
    settings, given = RECORDED["duplicates"]
    tokens = given["tokens"]
    view = View.of(tokens=tokens[None], num_kept=settings["budget"])
    chosen = farthest(cosine_distances(view.tokens), view)[0].tolist()
    assert len(set(chosen)) == settings["budget"]
    assert len({tuple(tokens[index].tolist()) for index in chosen[:10]}) == 10
    firsts = [int((tokens == token).all(1).nonzero()[0]) for token in tokens[chosen[:10]]]
    assert chosen[:10] == firsts
    assert chosen[10:] == [index for index in range(len(tokens)) if index not in firsts][:6]


def test_each_token_is_the_farthest_of_those_that_are_left():
    """The rule, restated naively, on cells of two sizes."""
    tokens = torch.randn(2, 23, 6, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(23) < torch.tensor([[23], [17]])
    view = View.of(tokens=tokens, valid=valid, num_kept=[9, 4])
    kept = get("divprune").group(view)
    for cell, (size, count) in enumerate([(23, 9), (17, 4)]):
        away = 1 - cosines(tokens[cell : cell + 1, :size])[0]
        chosen = [max(range(size), key=lambda i: min(float(away[i, j]) for j in range(size) if j != i))]
        while len(chosen) < count:
            left = [i for i in range(size) if i not in chosen]
            chosen.append(max(left, key=lambda i: min(float(away[i, j]) for j in chosen)))
        assert kept.representatives[cell, :count].tolist() == sorted(chosen)


@pytest.mark.parametrize("count", [1, 2])
def test_of_the_two_farthest_tokens_the_first_comes_first_whatever_the_padding(count):
    """Each is the nearest to the other, so that both are equally far; a product has them differ by rounding."""
    for seed in range(1960, 1980):
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randn(1, 6, 52, generator=random) + 0.5
        padded = torch.nn.functional.pad(tokens, (0, 0, 0, 194))
        kept = [
            get("divprune").group(View.of(tokens=given, valid=valid, num_kept=count)).representatives
            for given, valid in ((tokens, None), (padded, torch.arange(200)[None] < 6))
        ]
        assert kept[0].tolist() == kept[1].tolist()
        alike = cosines(tokens)[0].fill_diagonal_(-1)
        far = alike.amax(1)
        assert count > 1 or kept[0].tolist() == [[int((far == far.min()).nonzero()[0])]]
