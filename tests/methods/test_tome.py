"""ToMe against recorded runs of the published code, and with several matchings in one step."""

import pytest
import torch
from recorded import cases
from tolerances import assert_near

from ppe_npu.errors import InputError
from ppe_npu.methods import get
from ppe_npu.methods.view import View

RECORDED = cases("tome")


def same_groups(grouping, labels, representatives):
    """Check that groups equal the recorded ones, whose rows have another order, by their representatives."""
    for cell, (found, expected) in enumerate(zip(grouping.labels, labels)):
        assert grouping.representatives[cell][found].tolist() == representatives[cell][expected].tolist()


def by_place(values, representatives):
    """`values`, whose recorded rows have an order of their own, in the raster order of their representatives."""
    order = representatives.argsort(1)
    return values.gather(1, order.view(*order.shape, *[1] * (values.dim() - 2)).expand_as(values))


@pytest.mark.parametrize("case", ["one_step", "odd_n", "capped", "class_token"])
def test_one_matching_is_the_published_one(case):
    settings, given = RECORDED[case]
    method = get("tome", r=settings["r"], class_token=settings["class_token"])
    kept = method.kept(given["tokens"].shape[1])
    assert kept == given["merged"].shape[1]
    grouping = method.group(View.of(tokens=given["tokens"], tower_keys=given["keys"], num_kept=kept))
    same_groups(grouping, given["labels"], given["representative"])
    assert torch.equal(grouping.counts, by_place(given["size"], given["representative"]).long())
    merged = by_place(given["merged"], given["representative"])
    assert_near(grouping.apply(given["tokens"]), merged, roundings=2 * int(grouping.counts.max()))


def test_a_second_step_weighs_tokens_by_their_sizes():
    settings, given = RECORDED["two_steps"]
    method = get("tome", r=settings["r"][0])
    first = method.group(View.of(tokens=given["tokens"], tower_keys=given["keys1"], num_kept=77))
    rows = torch.stack([given["labels1"][0, first.representatives[0]]])  # the recorded row of each of our groups
    assert torch.equal(rows[0][first.labels[0]], given["labels1"][0])
    view = View.of(tokens=given["merged1"], tower_keys=given["keys2"], sizes=given["size1"].long(), num_kept=47)
    second = get("tome", r=settings["r"][1]).group(view)
    of_token = second.labels[0][given["labels1"][0]]
    recorded = given["labels2"][0]
    assert [of_token.tolist().index(label) for label in of_token] == [
        recorded.tolist().index(label) for label in recorded
    ]
    order = recorded[[of_token.tolist().index(group) for group in range(47)]]
    assert_near(second.apply(given["merged1"])[0], given["merged2"][0, order], roundings=2 * len(of_token))


def test_an_even_token_joins_its_copy():
    _, given = RECORDED["ties"]
    grouping = get("tome").group(View.of(tokens=given["tokens"], tower_keys=given["keys"], num_kept=44))
    keys = given["keys"][0]
    for group in range(44):
        mine = keys[grouping.labels[0] == group]
        assert_near(mine, mine[:1].expand_as(mine), roundings=2)


@pytest.mark.parametrize("class_token", [False, True])
def test_a_budget_below_half_is_matched_again_until_it_is_met(class_token):
    keys = torch.randn(3, 21, 5, generator=torch.Generator().manual_seed(1))
    valid = torch.arange(21) < torch.tensor([[21], [12], [9]])
    method = get("tome", class_token=class_token)
    view = View.of(tokens=keys, tower_keys=keys, valid=valid, num_kept=[1 + class_token, 9, 9])
    grouping = method.group(view)
    assert (grouping.counts > 0).sum(1).tolist() == [1 + class_token, 9, 9]
    assert grouping.counts.sum(1).tolist() == [21, 12, 9]
    for cell, (size, kept) in enumerate([(21, 1 + class_token), (12, 9), (9, 9)]):
        alone = method.group(View.of(tower_keys=keys[cell : cell + 1, :size], num_kept=kept))
        assert torch.equal(alone.labels[0], grouping.labels[cell, :size])
        assert torch.equal(alone.representatives[0], grouping.representatives[cell, :kept])
        assert alone.labels[0].gather(0, alone.representatives[0]).tolist() == list(range(kept))
    if class_token:
        assert method.group(View.of(tower_keys=keys, num_kept=1)).counts.tolist() == [[21]] * 3
        assert grouping.counts[:, 0].tolist() == [1, 1, 1]


def test_what_it_looks_at_follows_from_where_it_stands():
    assert get("tome").needs == {"tokens", "sizes", "tower_keys"}
    assert get("tome", layer=2).needs == {"tokens", "sizes", "layer_keys"}
    assert get("tome", metric="tokens").needs == {"tokens", "sizes"}
    keys = torch.randn(1, 10, 2, 3)
    by_layer = get("tome", layer=2).group(View.of(layer_keys=keys, num_kept=6))
    assert torch.equal(by_layer.labels, get("tome").group(View.of(tower_keys=keys.mean(2), num_kept=6)).labels)
    with pytest.raises(InputError, match="tome looks at tower_keys"):
        get("tome").group(View.of(tokens=keys[:, :, 0], num_kept=6))
    with pytest.raises(InputError, match="give only one of them"):
        get("tome", r=3, ratio=0.3)
