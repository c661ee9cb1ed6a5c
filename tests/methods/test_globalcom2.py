"""GlobalCom2 against recorded runs of the published code, and as an allocator over frames for any method."""

import dataclasses

import pytest
import torch
from recorded import case_names, cases

from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN, Events, Uniform, get
from ppe_npu.methods.view import View

RECORDED = cases("globalcom2")


def places_of(frame: int, height: int, width: int) -> torch.Tensor:
    """[height * width, 3] places of one frame."""
    return torch.cartesian_prod(torch.tensor([frame]), torch.arange(height), torch.arange(width)).view(-1, 3)


def view_of(settings, given, **fields) -> View:
    """A view with the thumbnail as frame 0, followed by the tokens of each crop without its padding."""
    side = settings["side"]
    valid, square = given["valid"].bool(), places_of(0, side, side)
    scores, places = [given["global_scores"]], [square]
    for crop, own in enumerate(given["crop_scores"]):
        scores.append(own[valid[crop]])
        places.append(square[valid[crop]] + torch.tensor([crop + 1, 0, 0]))
    scores, places = torch.cat(scores)[None], torch.cat(places)[None]
    # Places count from the crop's corner, so a crop that starts with padding does not start at row 0 and column 0.
    return View.of(tokens=scores[:, :, None], tower_saliency=scores, places=places, **fields)


def method_of(settings, **fields):
    keys = ("ratio", "temperature", "crops", "original_size")
    return get("globalcom2", **{key: settings[key] for key in keys}, **fields)


def chosen(grouping, view, cell=0) -> dict[int, list[int]]:
    """The kept tokens of each frame, counted from the frame's first token."""
    kept = grouping.representatives[cell][grouping.counts[cell] > 0]
    frame = view.places[cell, :, 0]
    first = {int(f): int((frame == f).nonzero()[0, 0]) for f in frame.unique()}
    return {f: [int(k) - start for k in kept if frame[k] == f] for f, start in first.items()}


@pytest.mark.parametrize("case", case_names("globalcom2"))
def test_released_keeps_what_the_published_code_keeps(case):
    settings, given = RECORDED[case]
    view = view_of(settings, given, num_kept=1)
    found = chosen(method_of(settings, released=True, dropped="drop").group(view), view)
    assert found[0] == sorted(given["thumbnail_kept"].tolist())
    for crop in range(len(settings["per_crop"])):
        assert found[crop + 1] == sorted(given[f"kept{crop}"].tolist())


@pytest.mark.parametrize("case", case_names("globalcom2"))
def test_the_total_is_exact_and_every_crop_is_near_its_share(case):
    settings, given = RECORDED[case]
    method = method_of(settings, dropped="drop")
    count = view_of(settings, given, num_kept=1).places.shape[1]
    view = view_of(settings, given, num_kept=method.kept(count))
    found = chosen(method.group(view), view)
    assert sum(map(len, found.values())) == method.kept(count)
    for crop, scale in enumerate(given["scales"].tolist()):
        number = settings["per_crop_valid"][crop]
        shifted = method.kept(count) / count / settings["ratio"]  # ceil keeps slightly more than the ratio
        assert abs(len(found[crop + 1]) - scale * shifted * number) <= 2
        assert set(found[crop + 1]) <= set(given[f"kept{crop}"].tolist()) or len(found[crop + 1]) > len(
            given[f"kept{crop}"]
        )


def video(frames=3, height=3, width=4, seed=0) -> dict:
    tokens = torch.randn(1, frames * height * width, 6, generator=torch.Generator().manual_seed(seed))
    return {"tokens": tokens, "places": torch.cat([places_of(f, height, width) for f in range(frames)])[None]}


def seen(by, count: int, seed: int = 5) -> dict:
    """What a method looks at beside tokens and places; of the text all frames are shown the same."""
    random = torch.Generator().manual_seed(seed)
    blocks = len(by.blocks(8))
    parts = {
        "text": torch.randn(1, 5, 6, generator=random),
        "tower_keys": torch.randn(1, count, 4, generator=random),
        "tower_saliency": torch.rand(1, *([blocks] if blocks > 1 else []), count, generator=random),
    }
    return {name: part for name, part in parts.items() if name in by.needs}


def of_frame(name: str, part: torch.Tensor, tokens: slice) -> torch.Tensor:
    return part if name == "text" else part[..., tokens] if name == "tower_saliency" else part[:, tokens]


@pytest.mark.parametrize(
    "by",
    [
        *(Uniform(), DPCKNN(), get("divprune"), get("divprune", dropped="drop"), get("tome"), get("visionzip")),
        *(get("hiprune"), get("vtc_cls"), get("mmr", tower_block=2), get("flashvlm"), get("cdpruner"), get("apet")),
    ],
    ids=lambda by: by.name,
)
def test_any_method_chooses_within_the_frames(by):
    """Each frame gets the groups that the inner method makes alone with the number of tokens allotted to the frame."""
    given = video() | seen(by, 36)
    method = get("globalcom2", temperature=0.2, by=by)
    assert method.blocks(8) == by.blocks(8)
    assert method.tower_windows == by.tower_windows
    grouping = method.group(View.of(**given, num_kept=14))
    assert (grouping.counts > 0).all()
    numbers = (grouping.representatives[0] // 12).bincount(minlength=3)
    assert numbers.sum() == 14
    assert len(set(numbers.tolist())) > 1
    before = 0
    for frame, number in enumerate(numbers.tolist()):
        part = slice(12 * frame, 12 * frame + 12)
        own = {name: of_frame(name, value, part) for name, value in given.items()}
        alone = by.group(View.of(**own, num_kept=number))
        mine = grouping.labels[0, part]
        assert torch.equal(torch.where(mine < 0, -1, mine - before), alone.labels[0])
        assert torch.equal(grouping.representatives[0, before : before + number] - 12 * frame, alone.representatives[0])
        if alone.weights is not None:
            assert torch.equal(grouping.weights[0, part], alone.weights[0])
        before += number


@pytest.mark.parametrize("by", [None, DPCKNN()])
def test_videos_of_other_sizes_change_nothing(by):
    first, second = video(3, 3, 4), video(2, 5, 2, seed=1)
    both = {name: torch.cat([first[name], torch.nn.functional.pad(second[name], (0, 0, 0, 16))]) for name in first}
    valid = torch.arange(36) < torch.tensor([[36], [20]])
    method = get("globalcom2", temperature=0.3, by=by)
    grouping = method.group(View.of(**both, valid=valid, num_kept=[11, 7]))
    for cell, (given, kept) in enumerate([(first, 11), (second, 7)]):
        alone = method.group(View.of(**given, num_kept=kept))
        assert torch.equal(alone.labels[0], grouping.labels[cell, : given["tokens"].shape[1]])
        assert torch.equal(alone.representatives[0], grouping.representatives[cell, :kept])
    assert (grouping.labels[1, 20:] == -1).all()


def test_a_frame_that_stands_out_keeps_more_and_an_image_keeps_its_share():
    given = video(4)
    given["tokens"][0, :] = 1 + 0.1 * given["tokens"][0]
    given["tokens"][0, 24:36] = -given["tokens"][0, 24:36]  # the third frame
    grouping = get("globalcom2", temperature=1).group(View.of(**given, num_kept=16))
    numbers = (grouping.representatives[0] // 12).bincount(minlength=4).tolist()
    assert numbers[2] == max(numbers) > 4
    image = video(1)
    assert (get("globalcom2").group(View.of(**image, num_kept=5)).counts > 0).sum() == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"by": Events()}, "globalcom2 by=.*give a method of frames"),
        ({"by": DPCKNN(layer=1)}, "globalcom2 by=.*give a method of frames"),
        ({"by": get("tome_tower")}, "globalcom2 by=.*that runs before the decoder"),
        ({"by": Uniform(), "dropped": "drop"}, "globalcom2 dropped='drop' with by=uniform: .*give dropped to it"),
        ({"crops": [2, 2]}, "give both or neither"),
        ({"crops": [2]}, "give rows and columns"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        get("globalcom2", **fields)


def test_groups_that_are_no_means_are_refused():
    by = get("visionzip", released=True)
    with pytest.raises(InputError, match="visionzip released=true: its groups, which are no means"):
        get("globalcom2", by=by).group(View.of(**video(), **seen(by, 36), num_kept=9))


def test_with_crops_the_shares_follow_all_blocks_that_the_inner_method_looks_at():
    settings, given = RECORDED[case_names("globalcom2")[0]]
    plain = view_of(settings, given, num_kept=40)
    blocks = torch.stack([plain.tower_saliency / 4, 3 * plain.tower_saliency / 4], dim=1)
    by = get("hiprune")
    kept = [
        chosen(method_of(settings, **fields).group(view), view)
        for fields, view in (({}, plain), ({"by": by}, dataclasses.replace(plain, tower_saliency=blocks)))
    ]
    assert [len(own) for own in kept[0].values()] == [len(own) for own in kept[1].values()]


def test_a_method_may_be_a_mapping():
    assert get("globalcom2", by={"method": "uniform"}).by == Uniform()
