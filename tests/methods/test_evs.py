"""EVS against recorded runs of the published code, and on budgets that this code exceeds."""

import itertools
import math

import pytest
import torch
from recorded import case_names, cases

from ppe_npu.errors import InputError
from ppe_npu.methods import get
from ppe_npu.methods.evs import dissimilarity
from ppe_npu.methods.view import View

RECORDED = cases("evs")


def grid(frames: int, height: int, width: int) -> torch.Tensor:
    """[1, N, 3] places of a full grid, in raster order."""
    return torch.cartesian_prod(*map(torch.arange, (frames, height, width))).view(1, -1, 3)


def chosen(grouping, cell=0) -> list[int]:
    return grouping.representatives[cell, : int((grouping.counts[cell] > 0).sum())].tolist()


@pytest.mark.parametrize("case", case_names("evs"))
@pytest.mark.parametrize("released", [True, False])
def test_the_choice_is_the_published_one(case, released):
    settings, given = RECORDED[case]
    method = get("evs", pruning_rate=settings["pruning_rate"], released=released)
    total = len(given["tokens"])
    asked = total if released else settings["kept"]
    assert method.kept(total) == (total if released else int(total * (1 - settings["pruning_rate"])))
    places = grid(settings["frames"], *settings["grid"])
    grouping = method.group(View.of(tokens=given["tokens"][None], places=places, num_kept=asked))
    assert chosen(grouping) == given["kept"].tolist()


@pytest.mark.parametrize("frames", [1, 4])
def test_fewer_than_a_frame_are_shared_out_and_no_frame_is_left_whole(frames):
    """The published code keeps 63 tokens here: the whole first frame, and nothing of the others."""
    _, given = RECORDED["case1"]
    tokens, places = given["tokens"][None, : frames * 63], grid(frames, 7, 9)
    grouping = get("evs").group(View.of(tokens=tokens, places=places, num_kept=50))
    kept = chosen(grouping)
    assert len(kept) == 50
    first = [index for index in kept if index < 63]
    assert len(first) == (13 if frames == 4 else 50)  # 50 / 4, halves up
    assert max(b - a for a, b in itertools.pairwise(first)) <= math.ceil(63 / len(first))
    away = dissimilarity(View.of(tokens=tokens, places=places, num_kept=50))[0, 63:]
    assert kept[len(first) :] == sorted((63 + away.argsort(descending=True, stable=True)[: 50 - len(first)]).tolist())


def test_what_a_step_before_has_left_is_compared_where_both_frames_have_it():
    tokens, places = torch.randn(1, 24, 5, generator=torch.Generator().manual_seed(0)), grid(2, 3, 4)
    left = torch.tensor([0, 3, 4, 7, 10, 11, 12, 15, 17, 22])  # of the second frame, its tokens 0, 3, 5 and 10
    away = dissimilarity(View.of(tokens=tokens[:, left], places=places[:, left], num_kept=4))[0]
    cosine = torch.nn.functional.cosine_similarity(tokens[0, 12:], tokens[0, :12], dim=-1)
    assert away[[0, 1, 2, 3, 4, 5, 8]].tolist() == [255.0] * 7
    assert torch.equal(away[[6, 7, 9]].argsort(), (1 - cosine[[0, 3, 10]]).argsort())
    assert (away[[6, 7, 9]] < 2.1).all()


def test_videos_of_other_sizes_change_nothing():
    tokens = torch.randn(2, 24, 5, generator=torch.Generator().manual_seed(1))
    places = torch.cat([grid(2, 3, 4), torch.cat([grid(3, 2, 3), grid(1, 2, 3) + 9], 1)])
    valid = torch.arange(24) < torch.tensor([[24], [18]])
    for released in (False, True):
        method = get("evs", ratio=0.4, released=released)
        counts = [method.kept(24), method.kept(18)]
        both = method.group(View.of(tokens=tokens, places=places, valid=valid, num_kept=counts))
        for cell, size in enumerate((24, 18)):
            one = slice(cell, cell + 1)
            view = View.of(tokens=tokens[one, :size], places=places[one, :size], num_kept=counts[cell])
            assert chosen(method.group(view)) == chosen(both, cell)
        assert (both.labels[1, 18:] == -1).all()


def test_either_share_may_be_given():
    assert get("evs", pruning_rate=0.25).kept(100) == get("evs", ratio=0.75).kept(100) == 75
    with pytest.raises(InputError, match="give only one of them"):
        get("evs", pruning_rate=0.25, ratio=0.3)
