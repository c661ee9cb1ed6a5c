"""MMR against recorded runs of the published code."""

import pytest
import torch
from recorded import case_names, cases

from ppe_npu.methods import get
from ppe_npu.methods.choosing import cosines
from ppe_npu.methods.view import View

RECORDED = cases("mmr")


@pytest.mark.parametrize("case", case_names("mmr"))
def test_the_choice_and_its_order_are_the_published_ones(case):
    settings, given = RECORDED[case]
    method = get("mmr", **{key: settings[key] for key in ("mmr_lambda", "parallel_k")}, ratio=1 - settings["ratio"])
    count = method.kept(len(given["tokens"]))
    assert count == settings["budget"]
    view = View.of(tokens=given["tokens"][None], tower_saliency=given["raw_importance"][None], num_kept=count)
    assert method.chosen(view)[0].tolist() == given["selected"].tolist()
    assert method.group(view).representatives[0].tolist() == given["kept"].tolist()


@pytest.mark.parametrize("parallel_k", [1, 3])
def test_cells_of_other_sizes_change_nothing(parallel_k):
    generator = torch.Generator().manual_seed(0)
    tokens, saliency = torch.randn(2, 19, 5, generator=generator), torch.rand(2, 19, generator=generator)
    valid = torch.arange(19) < torch.tensor([[19], [11]])
    method = get("mmr", mmr_lambda=0.4, parallel_k=parallel_k)
    both = method.group(View.of(tokens=tokens, tower_saliency=saliency, valid=valid, num_kept=[10, 4]))
    for cell, (size, kept) in enumerate([(19, 10), (11, 4)]):
        alone = View.of(
            tokens=tokens[cell : cell + 1, :size], tower_saliency=saliency[cell : cell + 1, :size], num_kept=kept
        )
        assert torch.equal(method.group(alone).representatives[0], both.representatives[cell, :kept])
    first = method.chosen(View.of(tokens=tokens, tower_saliency=saliency, num_kept=3))[:, 0]
    assert torch.equal(first, saliency.argmax(1))


def test_the_first_is_the_most_important_even_if_importance_counts_for_nothing_else():
    tokens = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(1))
    view = View.of(tokens=tokens, tower_saliency=torch.zeros(1, 9).index_fill(1, torch.tensor(5), 1.0), num_kept=3)
    chosen = get("mmr", mmr_lambda=0.0).chosen(view)[0].tolist()
    assert chosen[:2] == [5, int(cosines(tokens)[0, 5].argmin())]


def test_importance_alone_and_equal_importances():
    tokens, saliency = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(2)), torch.arange(12.0)[None]
    by_importance = get("mmr", mmr_lambda=1).group(View.of(tokens=tokens, tower_saliency=saliency, num_kept=4))
    assert by_importance.representatives[0].tolist() == [8, 9, 10, 11]
    equal = View.of(tokens=tokens, tower_saliency=torch.ones(1, 12), num_kept=4)
    assert get("mmr").chosen(equal)[0, 0] == 0
