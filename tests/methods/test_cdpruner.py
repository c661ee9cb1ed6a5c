"""CDPruner against recorded runs of the published code, and beyond the rank of its kernel."""

import pytest
import torch
from recorded import case_names, cases
from tolerances import assert_near

from ppe_npu.methods import get
from ppe_npu.methods.cdpruner import most_probable
from ppe_npu.methods.view import View

RECORDED = cases("cdpruner")


def view_of(given, num_kept, cells=slice(None)) -> View:
    tokens = given["tokens"][cells]
    text = given["text_embeds"].expand(len(tokens), -1, -1)
    return View.of(tokens=tokens, tower_keys=given["image_embeds"][cells], text=text, num_kept=num_kept)


@pytest.mark.parametrize("case", case_names("cdpruner"))
def test_released_relevance_and_choice_are_the_published_ones(case):
    settings, given = RECORDED[case]
    method = get("cdpruner", released=True)
    view = view_of(given, settings["budget"])
    # Errors: a cosine of two normalized vectors, then a difference divided by a range as small as half the largest.
    assert_near(method.relevance(view), given["relevance"], roundings=4 * (given["image_embeds"].shape[-1] + 8))
    if case != "case1":
        assert method.group(view).representatives.tolist() == given["kept"].tolist()
        return
    # 33 tokens of 32 channels are kept: the determinant is zero for the last one, so that rounding errors choose it.
    first = most_probable(view, method.relevance(view))[0, :32].tolist()
    assert len(set(given["kept"][0].tolist()) - set(first)) == 1


@pytest.mark.parametrize("case", case_names("cdpruner"))
def test_images_of_one_batch_are_each_their_own(case):
    settings, given = RECORDED[case]
    together = get("cdpruner").group(view_of(given, settings["budget"]))
    for cell in range(len(given["tokens"])):
        alone = view_of(given, settings["budget"], slice(cell, cell + 1))
        own = get("cdpruner", released=True).group(alone)  # given one image, the published code mixes in no other
        assert torch.equal(together.representatives[cell], own.representatives[0])


def test_a_used_up_rank_is_filled_up_by_falling_relevance():
    generator = torch.Generator().manual_seed(0)
    tokens, quality = torch.randn(2, 40, 6, generator=generator), torch.rand(2, 40, generator=generator)
    chosen = most_probable(View.of(tokens=tokens, num_kept=[20, 11]), quality)
    for cell, count in enumerate((20, 11)):
        kept = chosen[cell, :count].tolist()
        assert len(set(kept)) == count
        rank = torch.linalg.matrix_rank(tokens[cell, kept[:6]])
        assert rank == 6
        rest = [index for index in quality[cell].argsort(descending=True).tolist() if index not in kept[:6]]
        assert kept[6:] == rest[: count - 6]
    blank = torch.ones(1, 30, 4)
    kept = get("cdpruner").group(View.of(tokens=blank, text=torch.randn(1, 2, 4), num_kept=12)).representatives[0]
    assert len(set(kept.tolist())) == 12


def test_each_step_makes_the_determinant_largest():
    generator = torch.Generator().manual_seed(3)
    tokens, quality = torch.randn(1, 9, 12, generator=generator), torch.rand(1, 9, generator=generator) + 0.2
    unit = torch.nn.functional.normalize(tokens[0].double(), dim=-1) * quality[0].double()[:, None]
    kept: list[int] = []
    for _ in range(5):
        left = [index for index in range(9) if index not in kept]
        kept.append(max(left, key=lambda i: float(torch.linalg.det(unit[[*kept, i]] @ unit[[*kept, i]].T))))
    assert most_probable(View.of(tokens=tokens, num_kept=5), quality)[0].tolist() == kept


def test_texts_that_are_not_there_and_cells_of_other_sizes_change_nothing():
    generator = torch.Generator().manual_seed(1)
    tokens, text = torch.randn(2, 20, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    valid = torch.arange(20) < torch.tensor([[20], [13]])
    text_valid = torch.arange(5) < torch.tensor([[3], [0]])
    method = get("cdpruner")
    both = method.group(View.of(tokens=tokens, text=text, valid=valid, text_valid=text_valid, num_kept=[7, 5]))
    first = method.group(View.of(tokens=tokens[:1], text=text[:1, :3], num_kept=7))
    assert torch.equal(both.representatives[0], first.representatives[0])
    plain = most_probable(View.of(tokens=tokens[1:, :13], num_kept=5), torch.ones(1, 13))
    assert both.representatives[1, :5].tolist() == plain[0].sort().values.tolist()
