"""VidCom2 against recorded runs of the published code, and with an exact total."""

import dataclasses

import pytest
import torch
from recorded import case_names, cases
from tolerances import assert_near

from ppe_npu.methods import get
from ppe_npu.methods.frames import frame_of, rank_in_frame, shared_out
from ppe_npu.methods.vidcom2 import frame_ratios, scores
from ppe_npu.methods.view import View

RECORDED = cases("vidcom2")


def places_of(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.cartesian_prod(*map(torch.arange, (frames, height, width))).view(1, -1, 3)


def view_of(settings, given, num_kept) -> View:
    return View.of(
        tokens=given["tokens"][None], places=places_of(settings["frames"], *settings["grid"]), num_kept=num_kept
    )


def chosen(grouping, cell=0) -> list[int]:
    return grouping.representatives[cell, : int((grouping.counts[cell] > 0).sum())].tolist()


@pytest.mark.parametrize("case", case_names("vidcom2"))
def test_released_scores_shares_and_choice_are_the_published_ones(case):
    settings, given = RECORDED[case]
    method = get("vidcom2", ratio=settings["ratio"], released=True)
    view = view_of(settings, given, method.kept(len(given["tokens"])))
    labels, sizes = frame_of(view)
    video, frame = scores(view, labels, sizes)
    channels = given["tokens"].shape[1]  # a squared difference of sums over the channels, then five exponentials
    assert_near(video[0], given["video_score"].flatten(), roundings=channels + 15)
    assert_near(frame[0], given["frame_score"].flatten(), roundings=channels + 15)
    shares = frame_ratios(video, labels, sizes, settings["ratio"], 0.01)[0]
    # The softmax's exponent multiplies a score's error by a hundred, and the share moves as much.
    assert_near(shares, given["frame_ratio"], roundings=100 * (channels + 15) * 5)
    grouping = method.group(view)
    assert chosen(grouping) == given["kept"].tolist()
    assert method.counts == "late"


@pytest.mark.parametrize("case", case_names("vidcom2"))
def test_the_total_is_exact_and_frames_get_what_they_would_up_to_one(case):
    settings, given = RECORDED[case]
    method = get("vidcom2", ratio=settings["ratio"])
    total = method.kept(len(given["tokens"]))
    grouping = method.group(view_of(settings, given, total))
    kept = torch.tensor(chosen(grouping))
    size = settings["grid"][0] * settings["grid"][1]
    assert len(kept) == total == -(-len(given["tokens"]) * settings["ratio"] // 1)
    share = given["frame_ratio"] * size
    found = (kept // size).bincount(minlength=settings["frames"])
    if share.max() < size:
        assert (found - share).abs().max() <= 1 + total - settings["wanted"]
    both = given["video_score"] + given["frame_score"]
    for frame, number in enumerate(found.tolist()):
        best = both[frame].argsort(stable=True)[:number].sort().values
        assert (kept[kept // size == frame] % size).tolist() == best.tolist()


def test_shares_are_rounded_by_largest_remainder_and_caps_are_shared_again():
    places = places_of(3, 2, 2)
    view = View.of(tokens=torch.randn(1, 12, 3), places=places, num_kept=7)
    labels, sizes = frame_of(view)
    rank = rank_in_frame(torch.zeros(1, 12), labels, sizes)
    assert rank.tolist() == [[0, 1, 2, 3] * 3]
    for quotas, expected in (
        ([2.4, 2.2, 2.4], [3, 2, 2]),  # 2 each, and one more for the first of two equal remainders
        ([1.2, 1.3, 4.5], [1, 2, 4]),  # a frame has only 4
        ([0.0, 0.5, 6.5], [1, 2, 4]),  # at least one each; what exceeds a full frame goes to the others
        ([7.0, 0.0, 0.0], [4, 2, 1]),
    ):
        kept = shared_out(view, torch.tensor([quotas]), labels, rank)
        assert (kept[0] // 4).bincount(minlength=3).tolist() == expected
    few = View.of(tokens=torch.randn(1, 12, 3), places=places, num_kept=2)
    assert (shared_out(few, torch.tensor([[0.5, 0.6, 0.9]]), labels, rank)[0] // 4).tolist() == [2, 1]


@pytest.mark.parametrize("released", [False, True])
def test_videos_of_other_sizes_change_nothing(released):
    tokens = torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(1))
    places = torch.cat([places_of(2, 3, 4), torch.cat([places_of(3, 2, 3) + 4, places_of(1, 2, 3) + 9], 1)])
    valid = torch.arange(24) < torch.tensor([[24], [18]])
    method = get("vidcom2", ratio=0.4, released=released, temperature=0.05)
    counts = [method.kept(24), method.kept(18)]
    both = method.group(View.of(tokens=tokens, places=places, valid=valid, num_kept=counts))
    for cell, size in enumerate((24, 18)):
        one = slice(cell, cell + 1)
        view = View.of(tokens=tokens[one, :size], places=places[one, :size], num_kept=counts[cell])
        assert chosen(method.group(view)) == chosen(both, cell)
    assert (both.labels[1, 18:] == -1).all()


def test_the_host_need_not_know_how_many_frames_there_are():
    tokens = torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(1))
    view = View.of(tokens=tokens, places=places_of(4, 2, 3).expand(2, -1, -1), num_kept=9)
    unknown = dataclasses.replace(view, frames=None, frame_tokens=None, least=1)
    for name, fields in (("vidcom2", {}), ("globalcom2", {}), ("globalcom2", {"by": {"method": "dpc_knn"}})):
        known, found = (get(name, **fields).group(one) for one in (view, unknown))
        assert torch.equal(known.labels, found.labels)
        assert torch.equal(known.representatives, found.representatives)
