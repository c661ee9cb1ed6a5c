"""PACT against recorded runs of the published code: as published, and with an exact number of tokens."""

import pytest
import torch
from recorded import case_names, cases
from tolerances import assert_near

from ppe_npu.errors import InputError
from ppe_npu.methods import get
from ppe_npu.methods.pact import importance
from ppe_npu.methods.view import View

RECORDED = cases("pact")
CLUSTERED = [name for name in case_names("pact") if name.startswith("dbdpc")]
WHOLE = [name for name in case_names("pact") if name.startswith("pact")]


def view_of(settings, given, num_kept=None):
    """The view of a whole prompt, or of recorded tokens and keys that were only clustered."""
    if "tokens" in given:
        return View.of(tokens=given["tokens"][None], layer_keys=given["keys"][None, :, None], num_kept=num_kept)
    start, count = settings["image_start"], settings["grid"][0] * settings["grid"][1]
    place = torch.arange(len(given["hidden"]))
    visual = (place >= start) & (place < start + count)
    heads = {
        name: given[name].unflatten(-1, (-1, settings["head_dim"]))
        for name in ("queries", "keys_plain", "keys_rotated")
    }
    return View.of(
        tokens=given["hidden"][None, visual],
        layer_keys=heads["keys_rotated"][None, visual],
        layer_plain_queries=heads["queries"][None, visual],
        layer_plain_keys=heads["keys_plain"][None, visual],
        text_plain_queries=heads["queries"][None, ~visual],
        text_plain_keys=heads["keys_plain"][None, ~visual],
        text_after=place[None, ~visual] > start,
        num_kept=num_kept,
    )


def method_of(settings, **more):
    fields = {name: settings[name] for name in ("cutoff", "dc", "keep", "coef_pruned") if name in settings}
    return get("pact", **({"keep": 1.0} | fields | more))


def same(made, settings, given):
    centers = given["centers"].sort().values
    assert made.representatives[0].tolist() == centers.tolist()
    expected = given["center_of"]
    assert torch.where(made.labels[0] < 0, -1, centers[made.labels[0]]).tolist() == expected.tolist()
    assert made.counts[0].tolist() == given["weights"][given["centers"].argsort()].long().tolist()


@pytest.mark.parametrize("case", CLUSTERED + WHOLE)
def test_the_published_form_makes_the_published_groups(case):
    settings, given = RECORDED[case]
    method = method_of(settings, ratio=None, released=True)
    assert method.counts == "late"
    view = view_of(settings, given)
    made = method.group(view)
    same(made, settings, given)
    merged = given["merged"][given["centers"].argsort()]
    assert_near(made.apply(view.tokens)[0], merged, roundings=2 * int(made.counts.max()) + 2)


@pytest.mark.parametrize("case", CLUSTERED + WHOLE)
def test_asked_for_as_many_the_exact_form_makes_the_same_groups(case):
    settings, given = RECORDED[case]
    method = method_of(settings, ratio=0.5, released=True)
    assert method.counts == "exact"
    made = method.group(view_of(settings, given, settings["centers"]))
    same(made, settings, given)


@pytest.mark.parametrize("case", WHOLE)
def test_importance_is_the_published_one_with_the_text_before(case):
    settings, given = RECORDED[case]
    view = view_of(settings, given)
    score = importance(view, with_text=True)[0]
    assert_near(score, given["euti_score"], roundings=2**7)
    assert score.topk(settings["pruned_to"]).indices.sort().values.tolist() == given["euti_kept"].tolist()
    own = importance(view)[0]
    alone = importance(
        View.of(**{name: getattr(view, name) for name in ("tokens", "layer_plain_queries", "layer_plain_keys")})
    )
    assert torch.equal(own, alone[0])
    assert not torch.equal(own, score)


def naive(keys, stays, cutoff, dc, count=None):
    """(centres, [N, N] distances) by the rule, restated naively in fp64."""
    unit = torch.nn.functional.normalize(keys.double(), dim=-1)
    away = 1 - unit @ unit.T
    density = (-((away / dc) ** 2)).exp()[:, stays].sum(1)
    falling = sorted(stays, key=lambda token: -density[token])
    centers = []
    for token in falling:
        if all(away[token, center] > cutoff for center in centers):
            centers.append(token)
    more = [token for token in falling if token not in centers]
    return sorted(centers if count is None else (centers + more)[:count]), away


def test_on_cells_of_two_sizes_and_for_every_budget():
    generator = torch.Generator().manual_seed(0)
    tokens, keys = torch.randn(2, 30, 6, generator=generator), torch.randn(2, 30, 2, 4, generator=generator)
    valid = torch.arange(30) < torch.tensor([[30], [21]])
    for counts in ([1, 21], [7, 1], [30, 11], [16, 16]):
        view = View.of(tokens=tokens, layer_keys=keys, valid=valid, num_kept=counts)
        made = get("pact", keep=1.0, cutoff=0.4).group(view)
        for cell, (size, count) in enumerate(zip((30, 21), counts)):
            centers, away = naive(keys[cell, :size].flatten(1), range(size), 0.4, 2.0, count)
            assert made.representatives[cell, :count].tolist() == centers
            expected = [centers.index(i) if i in centers else int(away[i, centers].argmin()) for i in range(size)]
            assert made.labels[cell, :size].tolist() == expected
            assert (made.labels[cell, size:] == -1).all()
            assert (made.counts[cell, :count] > 0).all()
    late = get("pact", keep=1.0, cutoff=0.4, ratio=None).group(View.of(tokens=tokens, layer_keys=keys, valid=valid))
    for cell, size in enumerate((30, 21)):
        centers, _ = naive(keys[cell, :size].flatten(1), range(size), 0.4, 2.0)
        assert (late.counts[cell] > 0).sum() == len(centers)
        assert late.representatives[cell, : len(centers)].tolist() == centers
    few = get("pact", keep=1.0, cutoff=0.4, ratio=None).group(
        View.of(tokens=tokens, layer_keys=keys, valid=valid, num_kept=[2, 9])
    )
    assert (few.counts > 0).sum(1).tolist() == [2, 9]  # each cell's own bound, whatever the other's is
    assert few.representatives[0, :2].tolist() == naive(keys[0].flatten(1), range(30), 0.4, 2.0, 2)[0]


def test_what_is_too_far_goes_or_lends_its_place():
    settings, given = RECORDED["pact0"]
    view = view_of(settings, given, 17)
    made = {how: method_of(settings, released=True, dropped=how).group(view) for how in ("drop", "lend", "merge")}
    features = {how: grouping.apply(view.tokens) for how, grouping in made.items()}
    assert (made["drop"].labels == -1).sum() == settings["dropped"]
    assert (made["lend"].labels == -1).sum() == 0
    assert torch.equal(features["drop"], features["lend"])
    assert not torch.equal(features["drop"], features["merge"])


def test_more_than_euti_leaves_may_be_asked_for():
    settings, given = RECORDED["pact0"]
    made = method_of(settings, released=True).group(view_of(settings, given, 50))
    assert len(set(made.representatives[0].tolist())) == 50
    with pytest.raises(InputError, match="pact looks at layer_plain_queries"):
        get("pact").group(View.of(tokens=torch.randn(1, 4, 6), layer_keys=torch.randn(1, 4, 1, 6)))
