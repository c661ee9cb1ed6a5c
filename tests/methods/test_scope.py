"""SCOPE against recorded runs of the published code, and its rule against a naive one."""

import pytest
import torch
from recorded import case_names, cases

from ppe_npu.errors import InputError
from ppe_npu.methods import get
from ppe_npu.methods.choosing import cosines
from ppe_npu.methods.scope import covering
from ppe_npu.methods.view import View

RECORDED = cases("scope")


@pytest.mark.parametrize("case", case_names("scope"))
def test_the_choice_and_its_order_are_the_published_ones(case):
    settings, given = RECORDED[case]
    method = get("scope", alpha=settings["alpha"], combined=settings["combined"])
    view = View.of(tokens=given["tokens"], tower_saliency=given.get("saliency"), num_kept=settings["budget"])
    assert ("tower_saliency" in method.needs) == ("saliency" in given)
    assert torch.equal(method.group(view).representatives, given["selected"].sort(dim=1).values)
    saliency = torch.ones(given["tokens"].shape[:2]) if settings["alpha"] is None else given["saliency"]
    assert torch.equal(covering(view, saliency ** (settings["alpha"] or 1.0)), given["selected"])


@pytest.mark.parametrize("combined", ["multi", "add"])
def test_each_token_has_the_largest_gain_of_those_that_are_left(combined):
    """The rule, restated naively, on cells of two sizes."""
    generator = torch.Generator().manual_seed(0)
    tokens, saliency = torch.randn(2, 23, 6, generator=generator), torch.rand(2, 23, generator=generator)
    valid = torch.arange(23) < torch.tensor([[23], [17]])
    view = View.of(tokens=tokens, tower_saliency=saliency, valid=valid, num_kept=[9, 4])
    kept = get("scope", alpha=2.0, combined=combined).group(view)
    for cell, (size, count) in enumerate([(23, 9), (17, 4)]):
        alike = cosines(tokens[cell : cell + 1, :size])[0].double()
        chosen = []
        while len(chosen) < count:
            cover = alike[:, chosen].amax(1).clamp_min(0) if chosen else torch.zeros(size)

            def gain(j, cover=cover, alike=alike, cell=cell):
                covered = (alike[:, j] - cover).clamp_min(0).sum()
                weight = float(saliency[cell, j]) ** 2
                return covered * weight if combined == "multi" else covered + weight

            chosen.append(max((j for j in range(size) if j not in chosen), key=gain))
        assert kept.representatives[cell, :count].tolist() == sorted(chosen)


def test_no_token_is_taken_twice_where_all_are_covered():
    view = View.of(tokens=torch.ones(1, 6, 4), tower_saliency=torch.full((1, 6), 1 / 6), num_kept=4)
    assert get("scope").group(view).representatives.tolist() == [[0, 1, 2, 3]]


def test_saliency_that_it_looks_at_is_not_left_out_in_silence():
    view = View.of(tokens=torch.rand(1, 6, 4))
    with pytest.raises(InputError, match="scope looks at tower_saliency: give"):
        get("scope").group(view)
    assert get("scope", alpha=None, ratio=0.5).group(view).representatives.shape == (1, 3)


@pytest.mark.parametrize("seed", range(5))
def test_of_tokens_that_cover_equally_much_the_first_is_chosen(seed):
    """Five pairs of tokens, of which no two are alike: in each pair both cover the pair."""
    random = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(10, 10, generator=random)).Q
    mixed = torch.eye(10)
    mixed[1::2] = 0.8 * mixed[::2] + 0.6 * mixed[1::2]
    tokens = (mixed @ turned)[None] * torch.rand(1, 10, 1, generator=random)
    padded = torch.cat([tokens, torch.zeros(1, 33, 10)], dim=1)
    for view in (View.of(tokens=tokens), View.of(tokens=padded, valid=torch.arange(43)[None] < 10)):
        kept = get("scope", alpha=None).group(view.keeping(5))
        assert kept.representatives.tolist() == [[0, 2, 4, 6, 8]]
