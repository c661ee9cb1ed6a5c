"""VisionZip against recorded runs of the published code and of a port to towers without a class token."""

import pytest
import torch
from recorded import case_names, cases
from tolerances import assert_near

from ppe_npu.engine.tower import received
from ppe_npu.errors import InputError
from ppe_npu.methods import get
from ppe_npu.methods.view import View

RECORDED = cases("visionzip")
CLIP = [name for name in case_names("visionzip") if name.startswith("clip")]
QWEN = [name for name in case_names("visionzip") if name.startswith("qwen")]


def clip(case, **fields):
    settings, given = RECORDED[case]
    fields |= {name: settings[name] for name in ("contextual", "dominant")}
    method, tokens = get("visionzip", **fields), given["hidden"][:, 1:]
    view = View.of(
        tokens=tokens, tower_keys=given["keys"][:, 1:], tower_saliency=given["cls_attention"].sum(1),
        num_kept=method.kept(tokens.shape[1]),
    )  # fmt: skip
    return method.group(view), given


@pytest.mark.parametrize("case", CLIP)
def test_the_groups_are_the_published_ones(case):
    grouping, given = clip(case)
    for cell, labels in enumerate(grouping.labels):
        representatives = grouping.representatives[cell].tolist()
        targets, dominant = given["contextual_target"][cell].tolist(), given["dominant"][cell].tolist()
        assert representatives == sorted(targets + dominant)
        for token, recorded in enumerate(given["contextual_label"][cell].tolist()):
            expected = token if recorded < 0 else targets[recorded]
            assert representatives[labels[token]] == expected


@pytest.mark.parametrize("case", CLIP)
def test_features_are_the_published_ones_where_that_is_asked_for(case):
    released, given = clip(case, released=True)
    tokens = given["hidden"][:, 1:]
    made, corrected = released.apply(tokens), clip(case)[0].apply(tokens)
    order = [given["dominant"].sort(dim=1).values, given["contextual_target"]]
    row = (released.representatives[:, None] == torch.cat(order, dim=1)[:, :, None]).long().argmax(-1)
    expected = given["merged"][:, 1:]
    found = made.gather(1, row[:, :, None].expand_as(expected))
    assert_near(found, expected, roundings=4 * tokens.shape[1])
    members = released.counts.gather(1, row)[:, :, None]
    mean = corrected.gather(1, row[:, :, None].expand_as(expected))
    target = tokens.gather(1, torch.cat(order, dim=1)[:, :, None].expand_as(expected))
    plain = torch.where(members > 1, (target + (expected - target) * (members - 1)) / members, expected)
    assert_near(mean, plain, roundings=4 * tokens.shape[1])


@pytest.mark.parametrize("case", QWEN)
def test_groups_scores_and_features_of_several_images_are_those_of_the_port(case):
    settings, given = RECORDED[case]
    sizes = [height * width for height, width in settings["grids"]]
    width = given["vit_q"].shape[-1]
    scores = received(given["vit_q"], given["vit_k"], [4 * size for size in sizes], width**-0.5)
    scores = scores.unflatten(0, (-1, 4)).sum(1)
    keys = given["vit_k"].mean(0).unflatten(0, (-1, 4)).mean(1)
    assert_near(keys, given["keys"], roundings=16)
    method = get("visionzip", ratio=1 - settings["ratio"], zip_ratio=settings["zip_ratio"])
    most = max(sizes)

    def cells(values):
        parts = values.split(sizes)
        return torch.stack([torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])]) for part in parts])

    view = View.of(
        tokens=cells(given["tokens"]), tower_keys=cells(keys), tower_saliency=cells(scores),
        valid=torch.arange(most) < torch.tensor(sizes)[:, None], num_kept=[method.kept(size) for size in sizes],
    )  # fmt: skip
    assert view.num_kept.tolist() == settings["kept"]
    grouping = method.group(view)
    merged = grouping.apply(view.tokens)
    at = 0
    for cell, (size, count) in enumerate(zip(sizes, settings["kept"])):
        recorded = given["scores"][at : at + size]  # the recorded scores are sums over queries, not means
        assert_near(scores[at : at + size] * 4 * size, recorded, roundings=8 * size)
        assert grouping.representatives[cell, :count].tolist() == given[f"kept{cell}"].tolist()
        assert grouping.labels[cell, :size].tolist() == given[f"weights{cell}"].argmax(0).tolist()
        assert_near(merged[cell, :count], given[f"merged{cell}"], roundings=4 * size)
        at += size


def test_one_token_is_the_mean_of_all_and_a_target_alone_stays():
    tokens = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    parts = {"tokens": tokens, "tower_keys": tokens, "tower_saliency": torch.rand(1, 9)}
    one = get("visionzip").group(View.of(**parts, num_kept=1))
    assert one.labels.tolist() == [[0] * 9]
    every = get("visionzip", released=True).group(View.of(**parts, num_kept=9))
    assert torch.equal(every.apply(tokens), tokens)


def test_dominant_alone_is_refused():
    with pytest.raises(InputError, match="visionzip dominant=54: give contextual, too"):
        get("visionzip", dominant=54)
    assert get("visionzip", dominant=54, contextual=10).kept(576) == 64
