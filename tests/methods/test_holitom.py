"""HoliTom against recorded runs of the published code."""

import pytest
import torch
from recorded import case_names, cases
from tolerances import assert_near

from ppe_npu.errors import InputError
from ppe_npu.methods import get
from ppe_npu.methods.view import View

RECORDED = cases("holitom")
FIELDS = ("D", "K", "NO_BETA", "beta", "max_window", "retain_ratio", "tau")


def view_of(settings, given):
    grid = (settings["frames"], *settings["grid"])
    places = torch.cartesian_prod(*map(torch.arange, grid)).view(1, -1, 3)
    return View.of(
        tokens=given["tokens"].flatten(0, 1)[None], places=places, tower_saliency=given["attention"].flatten()[None]
    )


@pytest.mark.parametrize("case", case_names("holitom"))
@pytest.mark.parametrize("dropped", ["lend", "drop"])
def test_the_published_tokens_in_their_order(case, dropped):
    settings, given = RECORDED[case]
    method = get("holitom", **{name: settings[name] for name in FIELDS}, released=True, dropped=dropped)
    view = view_of(settings, given)
    grouping = method.group(view)
    kept = int((grouping.counts[0] > 0).sum())
    assert kept == settings["kept"]
    assert kept <= method.kept_cells([view.tokens.shape[1] // settings["frames"]] * settings["frames"])[0]
    found = grouping.apply(view.tokens)[0, :kept]
    # Errors: a sum over all frames' tokens in a cluster, and a weighted one.
    assert_near(found, given["merged"], roundings=2 * view.tokens.shape[1], size=view.tokens.abs().max())
    # With clusters (D), every token belongs to one.
    assert (grouping.labels[0] < 0).any() == (dropped == "drop" and not settings["D"])
    raster = get("holitom", **{name: settings[name] for name in FIELDS}).group(view)
    order = grouping.representatives[0, :kept].argsort()
    assert raster.representatives[0, :kept].tolist() == grouping.representatives[0, :kept][order].tolist()
    assert_near(raster.apply(view.tokens)[0, :kept], found[order], roundings=4, size=view.tokens.abs().max())


def test_videos_of_a_batch_are_alone():
    """Videos of different sizes, padded to one length, get the groups that each gets alone."""
    views = [view_of(*RECORDED[case]) for case in ("case0", "case3", "case2")]
    method = get("holitom", ratio=0.3)
    length = max(view.tokens.shape[1] for view in views)

    def padded(part):
        return torch.cat([torch.cat([p, p.new_zeros(1, length - p.shape[1], *p.shape[2:])], 1) for p in part])

    valid = torch.stack([torch.arange(length) < view.tokens.shape[1] for view in views])
    names = ("tokens", "places", "tower_saliency")
    together = method.group(View.of(valid=valid, **{n: padded([getattr(v, n) for v in views]) for n in names}))
    for row, view in enumerate(views):
        alone, count = method.group(view), view.tokens.shape[1]
        assert together.labels[row, :count].tolist() == alone.labels[0].tolist()
        assert (together.labels[row, count:] == -1).all()
        own = (together.counts[row] > 0).sum()
        assert together.representatives[row, :own].tolist() == alone.representatives[0, :own].tolist()


def still(frames, height, width):
    """A video whose frames are all the same."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, height * width, 8, generator=generator).repeat(1, frames, 1)
    places = torch.cartesian_prod(*map(torch.arange, (frames, height, width)))[None]
    return View.of(tokens=tokens, places=places, tower_saliency=torch.rand(tokens.shape[:2], generator=generator))


@pytest.mark.parametrize("fields", [{}, {"released": True}, {"NO_BETA": True}, {"dropped": "drop"}])
@pytest.mark.parametrize("grid", [(2, 1, 2), (3, 2, 2), (1, 1, 1)])
def test_a_video_of_which_little_is_kept_keeps_a_token(grid, fields):
    method, view = get("holitom", ratio=0.01, **fields), still(*grid)
    grouping = method.group(view)
    kept = int((grouping.counts > 0).sum())
    assert 1 <= kept <= sum(method.kept_cells([grid[1] * grid[2]] * grid[0]))
    lengths = grouping.apply(view.tokens)[0, :kept].norm(dim=-1)  # a group without a feature is 0
    assert (lengths > 0.1).all()


@pytest.mark.parametrize("name", ["holitom", "flashvid"])
def test_with_ratio_1_every_token_of_a_still_video_stays(name):
    view = still(4, 4, 4)
    grouping = get(name, ratio=1.0).group(view)
    assert grouping.representatives.tolist() == grouping.labels.tolist() == [list(range(64))]
    assert torch.equal(grouping.apply(view.tokens), view.tokens)
    assert (get("holitom", ratio=1.0, released=True).group(view).counts > 0).sum() == 16


def test_two_names_for_one_share_are_refused():
    with pytest.raises(InputError, match=r"holitom ratio=0.2 with retain_ratio=0.3: give only one of them"):
        get("holitom", ratio=0.2, retain_ratio=0.3)
