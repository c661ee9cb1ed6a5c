"""SparseVLM against recorded runs of the published code, and its clustering against a naive one."""

import pytest
import torch
from recorded import case_names, cases
from tolerances import assert_near

from ppe_npu.methods import get
from ppe_npu.methods.peaks import density_peaks
from ppe_npu.methods.sparsevlm import _most, rated, raters, split
from ppe_npu.methods.view import View

RECORDED = cases("sparsevlm")


def view_of(settings, given, num_kept):
    """The recording lacks the queries before the image, which the method never reads; they are zeros."""
    start, count = settings["image_start"], settings["grid"][0] * settings["grid"][1]
    text = torch.tensor([place for place in range(len(given["hidden_in"])) if not start <= place < start + count])
    keys, queries = (given[name].transpose(0, 1) for name in ("keys", "queries"))
    return View.of(
        tokens=given["hidden_in"][None, start : start + count],
        layer_keys=keys[None, start : start + count],
        text=given["hidden_in"][None, text],
        text_keys=keys[None, text],
        text_queries=torch.cat([torch.zeros(start, *queries.shape[1:]), queries])[None],
        text_after=text[None] > start,
        num_kept=num_kept,
    )


@pytest.mark.parametrize("case", case_names("sparsevlm"))
def test_raters_scores_and_choices_are_the_published_ones(case):
    settings, given = RECORDED[case]
    view = view_of(settings, given, settings["kept"] + settings["merged"])
    start = settings["image_start"]
    assert (raters(view)[0].nonzero()[:, 0] - start).tolist() == given["raters"].tolist()
    assert_near(rated(view)[0], given["relation"], roundings=2**6)
    assert [int(part) for part in split(view)] == [settings["kept"], settings["recycled"]]
    made = get("sparsevlm", dropped="drop").group(view)
    groups = {int(token): int(label) for token, label in zip(made.representatives[0], range(view.most))}
    assert set(given["kept"].tolist()) <= set(groups)
    assert all(made.counts[0, groups[token]] == 1 for token in given["kept"].tolist())
    together = sorted((set(groups) - set(given["kept"].tolist())) | set(given["recycled"].tolist()))
    assert together == sorted(given["recycled"].tolist())
    assert (made.labels[0] >= 0).sum() == settings["kept"] + settings["recycled"]


@pytest.mark.parametrize("case", case_names("sparsevlm"))
def test_clusters_are_the_published_ones(case):
    """The published code clusters the layer's output, so these tokens do, too."""
    settings, given = RECORDED[case]
    start, recycled, count = settings["image_start"], given["recycled"], torch.tensor([settings["merged"]])
    tokens = given["hidden_out"][None, start + recycled]
    there = torch.ones(1, len(recycled), dtype=torch.bool)
    centers, labels = density_peaks(tokens, there, count, int(count), count, int(count))
    found = recycled[centers[0]]
    assert sorted(found.tolist()) == sorted(given["cluster_center"].tolist())
    # The recorded clusters are numbered in another order.
    expected = given["cluster_of"][recycled]
    assert found[labels[0]].tolist() == given["cluster_center"][expected].tolist()


def test_peaks_by_the_rule_in_words_on_cells_of_two_sizes():
    generator, sizes, wanted, neighbors = torch.Generator().manual_seed(1), (19, 11), (5, 3), (7, 3)
    tokens = torch.randn(2, 19, 6, generator=generator)
    valid = torch.arange(19) < torch.tensor(sizes)[:, None]
    centers, labels = density_peaks(tokens, valid, torch.tensor(wanted), 5, torch.tensor(neighbors), 7)
    for cell, (size, clusters, k) in enumerate(zip(sizes, wanted, neighbors)):
        x = tokens[cell, :size].double()
        away = torch.cdist(x, x) / 6**0.5
        density = (-(away.sort(dim=1).values[:, :k] ** 2).mean(1)).exp()
        denser = [[float(away[i, j]) for j in range(size) if density[j] > density[i]] for i in range(size)]
        score = torch.tensor([min(some) if some else float(away.max()) for some in denser]) * density
        assert centers[cell, :clusters].tolist() == score.argsort(descending=True)[:clusters].tolist()
        assert labels[cell, :size].tolist() == away[:, centers[cell, :clusters]].argmin(1).tolist()
        assert (labels[cell, size:] == -1).all()


@pytest.mark.parametrize("dropped", ["lend", "merge", "drop"])
def test_counts_are_exact_for_every_budget(dropped):
    generator = torch.Generator().manual_seed(0)
    shapes = {"tokens": (40, 8), "layer_keys": (40, 1, 4), "text": (6, 8), "text_keys": (6, 1, 4)}
    given = {name: torch.randn(1, *shape, generator=generator) for name, shape in shapes.items()}
    given |= {"text_queries": torch.randn(1, 6, 2, 4, generator=generator), "text_after": torch.arange(6)[None] > 2}
    for count in range(1, 41):
        made = get("sparsevlm", dropped=dropped).group(View.of(**given, num_kept=count))
        kept = made.representatives[0].tolist()
        assert kept == sorted(set(kept))
        assert len(kept) == count
        assert (made.labels[0, made.representatives[0]] == torch.arange(count)).all()
        assert (made.counts > 0).all()
        assert ((made.labels == -1).sum() == 0) == (dropped != "drop" or count == 40)
    assert torch.equal(made.apply(given["tokens"]), given["tokens"])


def test_of_equal_tokens_and_densities_the_first_comes_first():
    tokens = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1)
    there, two = torch.ones(1, 12, dtype=torch.bool), torch.tensor([2])
    centers, labels = density_peaks(tokens, there, torch.tensor([4]), 4, torch.tensor([3]), 3)
    assert sorted(centers[0].tolist()) == [0, 1, 2, 3]
    assert centers[0][labels[0]].tolist() == [0, 1, 2, 3] * 3
    pair = torch.tensor([[[5.0], [0.0], [5.1], [9.0], [0.3]]])  # 0 and 2 are each other's nearest: equally dense
    assert density_peaks(pair, there[:, :5], two, 2, two, 2)[0].tolist()[0][0] == 0


def every_cell(length):
    """Cells of n tokens that keep m of them, for all 1 <= m <= n <= length."""
    pairs = torch.tensor([(n, m) for n in range(1, length + 1) for m in range(1, n + 1)])
    valid = torch.arange(length) < pairs[:, :1]
    return View.of(tokens=torch.zeros(len(pairs), length, 1), valid=valid, num_kept=pairs[:, 1]), pairs.unbind(1)


def test_the_host_knows_how_many_are_clustered_and_left_out_at_most():
    view, (sizes, kept) = every_cell(70)
    whole, recycled = split(view)
    for least in range(1, 71):
        some = kept >= least
        left_out = (sizes - whole - recycled)[some].max()
        assert _most(70, least) == (max(int(recycled[some].max()), 1), int(left_out))


def test_published_budgets_have_their_clusters_on_top():
    view, (sizes, whole) = every_cell(70)
    asked = torch.minimum(whole, sizes - 1)
    left = sizes - asked
    total = asked + (3 * left // 10 + 1) // 10 + 1
    view = View.of(tokens=view.tokens, valid=view.valid, num_kept=total)
    assert torch.equal(split(view, whole)[0], asked)
    assert (split(view)[0] >= asked).all()
    assert not torch.equal(split(view)[0], asked)  # e.g. of 70: 37 with 2 clusters, or 38 with 1
    pairs = list(zip(sizes.tolist(), whole.tolist()))
    methods = [get("sparsevlm", released=True, ratio=min((m + 0.5) / n, 1)) for n, m in pairs]
    assert [method.kept(n) for method, (n, _) in zip(methods, pairs)] == total.tolist()


@pytest.mark.parametrize("case", case_names("sparsevlm"))
def test_released_keeps_as_many_as_published_without_being_told(case):
    settings, given = RECORDED[case]
    count = settings["grid"][0] * settings["grid"][1]
    method = get("sparsevlm", ratio=(settings["kept"] + 0.5) / count, released=True)
    view = view_of(settings, given, None)
    assert method.kept(count) == settings["kept"] + settings["merged"]
    made = method.group(view)
    assert set(given["kept"].tolist()) <= set(made.representatives[0].tolist())
    assert made.weights[0].sum() == settings["kept"] + settings["recycled"]
    assert (made.labels >= 0).all()
