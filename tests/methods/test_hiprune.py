"""HiPrune against recorded runs of the published code, and its corrected rule against a naive one."""

import pytest
import torch
from recorded import case_names, cases

from ppe_npu.methods import get
from ppe_npu.methods.view import View

RECORDED = cases("hiprune")


def places(height, width):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(1, -1, 3)


def view_of(given, settings):
    scores = torch.stack([given["middle_scores"], given["deep_scores"]])[None]
    return View.of(tower_saliency=scores, places=places(*settings["grid"]), num_kept=settings["budget"])


@pytest.mark.parametrize("case", case_names("hiprune"))
def test_the_choice_is_the_published_one(case):
    settings, given = RECORDED[case]
    method = get("hiprune", alpha=settings["alpha"], released=True, ratio=1 - settings["ratio"])
    assert method.kept(len(given["deep_scores"])) == settings["budget"]
    assert method.group(view_of(given, settings)).representatives[0].tolist() == given["kept"].tolist()


def by_words(middle, last, height, width, budget, alpha):
    by_middle = sorted(range(len(middle)), key=lambda i: -float(middle[i]))
    anchors = by_middle[: round(budget * alpha / 5) or (1 if alpha and budget >= 5 else 0)]
    chosen = list(anchors)
    for anchor in anchors:
        row, column = divmod(anchor, width)
        beside = [(row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column)]
        buffers = [r * width + c for r, c in beside if 0 <= r < height and 0 <= c < width]
        chosen += sorted((i for i in buffers if i not in chosen), key=lambda i: -float(last[i]))
    rest = sorted((i for i in range(len(last)) if i not in chosen), key=lambda i: -float(last[i]))
    return sorted((chosen + rest)[:budget])


@pytest.mark.parametrize(
    ("budget", "alpha"), [(3, 0.1), (4, 1.0), (5, 0.1), (13, 1.0), (17, 0.5), (29, 0.0), (30, 1.0)]
)
def test_neighbours_are_those_in_the_grid_and_the_count_is_exact(budget, alpha):
    """A budget of 13 with alpha 1.0 has round(13 * 1.0 / 5) = 3 anchors, up to 15 tokens with their neighbours."""
    method, sizes = get("hiprune", alpha=alpha), [(5, 6), (6, 5)]
    for seed in range(8):
        scores = torch.rand(2, 2, 30, generator=torch.Generator().manual_seed(seed))
        view = View.of(tower_saliency=scores, places=torch.cat([places(*size) for size in sizes]), num_kept=budget)
        kept = method.group(view).representatives
        for cell, size in enumerate(sizes):
            assert kept[cell].tolist() == by_words(*scores[cell], *size, budget, alpha)


def test_the_case_that_hangs_on_the_quirk_is_another_one_without_it():
    """In the published code, an anchor at the lower edge has the frame's last token as a neighbour."""
    settings, given = RECORDED["case0"]
    kept = get("hiprune", alpha=settings["alpha"]).group(view_of(given, settings)).representatives[0].tolist()
    expected = by_words(given["middle_scores"], given["deep_scores"], *settings["grid"], settings["budget"], 0.1)
    assert kept == expected != given["kept"].tolist()


def test_a_neighbour_is_of_the_same_frame():
    """A cell may have several frames, such as a segment of a video; neighbours are searched within one."""
    both = torch.cat([places(2, 3), places(2, 3) + torch.tensor([1, 0, 0])], dim=1)
    middle = torch.zeros(12).index_fill(0, torch.tensor(1), 1.0)  # frame 0, row 0, column 1
    last = torch.linspace(0, 1, 12)
    view = View.of(tower_saliency=torch.stack([middle, last])[None], places=both, num_kept=5)
    assert get("hiprune").group(view).representatives[0].tolist() == [0, 1, 2, 4, 11]


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_padding_is_no_neighbour_wherever_it_claims_to_be(padding):
    """The engine pads with a token of the batch, whose place may be beside an anchor."""
    at = torch.cat([places(3, 3), places(3, 3)[:, padding].expand(1, 3, 3)], dim=1)
    middle = torch.zeros(12).index_fill(0, torch.tensor(1), 1.0)
    scores, valid = torch.stack([middle, torch.linspace(0, 1, 12)])[None], torch.arange(12)[None] < 9
    padded = get("hiprune").group(View.of(tower_saliency=scores, places=at, valid=valid, num_kept=6))
    alone = get("hiprune").group(View.of(tower_saliency=scores[:, :, :9], places=at[:, :9], num_kept=6))
    assert padded.representatives.tolist() == alone.representatives.tolist() == [[0, 1, 2, 4, 7, 8]]


@pytest.mark.parametrize(
    ("fields", "count", "blocks"),
    [({}, 32, (16, 31)), ({}, 2, (1, 1)), ({"object_layer": 9}, 24, (9, 23)), ({"last_vit_layer": 7}, 24, (12, 7))],
)
def test_blocks(fields, count, blocks):
    assert get("hiprune", **fields).blocks(count) == blocks


def test_where_one_block_is_left_it_is_both():
    at, scores = places(4, 5), torch.rand(1, 20, generator=torch.Generator().manual_seed(0))
    one, both = scores, torch.stack([scores, scores], dim=1)
    made = [get("hiprune").group(View.of(tower_saliency=part, places=at, num_kept=8)) for part in (one, both)]
    assert made[0].representatives.tolist() == made[1].representatives.tolist()
