"""ApET against recorded runs of the published code, and its rule without the slots that this code overwrites."""

import math

import pytest
import torch
from recorded import cases
from tolerances import assert_near

from ppe_npu.methods import get
from ppe_npu.methods.apet import farthest_samples, residuals
from ppe_npu.methods.view import View

RECORDED = cases("apet")
QWEN = ["qwen0", "qwen1", "qwen2", "qwen3"]


def method_of(settings, given, **fields):
    keys = {key: settings[key] for key in ("basis", "ridge", "ratio") if key in settings}
    return get("apet", **keys, fps_start=int(given["basis"].flatten()[0]), **fields)


@pytest.mark.parametrize("case", QWEN)
def test_samples_errors_and_choice_are_the_published_ones(case):
    settings, given = RECORDED[case]
    tokens = given["tokens"][None]
    method = method_of(settings, given)
    assert method.kept(tokens.shape[1]) == settings["budget"]
    present = torch.ones(tokens.shape[:2], dtype=torch.bool)
    basis = farthest_samples(tokens, present, settings["basis"], settings["fps_start"])
    assert basis[0].tolist() == given["basis"].tolist()
    found = residuals(tokens, basis, settings["ridge"])[0]
    assert found.argsort(descending=True)[: settings["budget"]].tolist() == given["by_error"].tolist()
    grouping = method.group(View.of(tokens=tokens, num_kept=settings["budget"]))
    assert grouping.representatives[0].tolist() == given["kept"].tolist()


@pytest.mark.parametrize("case", QWEN)
def test_released_groups_and_features_are_the_published_ones(case):
    settings, given = RECORDED[case]
    grouping = method_of(settings, given, released=True).group(
        View.of(tokens=given["tokens"][None], num_kept=settings["budget"])
    )
    assert grouping.representatives[0].tolist() == given["kept"].tolist()
    heads = grouping.representatives[0][grouping.labels[0]]
    own = torch.zeros_like(heads, dtype=torch.bool)
    own[given["kept"]] = True
    assert heads[own].tolist() == given["kept"].tolist()
    assert heads[~own].tolist() == given["merged_into_wide"][~own].tolist()
    merged = grouping.apply(given["tokens"][None])[0]
    assert_near(merged, given["merged_wide"], roundings=2 * int(grouping.counts.max()) + 4)


def test_released_llava_replaces_what_qwen_mixes():
    settings, given = RECORDED["llava"]
    for sample in range(2):
        method = get("apet", fps_start=int(given["basis"][sample, 0]), released=True, mixed=1)
        grouping = method.group(View.of(tokens=given["tokens"][sample : sample + 1], num_kept=settings["budget"]))
        assert grouping.representatives[0].tolist() == given["kept"][sample].tolist()
        replaced = grouping.mixed[0] >= 0
        assert grouping.mixed[0][replaced].tolist() == given["basis"][sample].tolist()
        merged = grouping.apply(given["tokens"][sample : sample + 1])[0]
        assert torch.equal(merged[replaced].half().float(), given["merged"][sample][replaced])


def test_inside_the_decoder_with_its_own_ridge():
    settings, given = RECORDED["llm_layer"]
    first = settings["image_start"]
    tokens = given["hidden"][None, first : first + math.prod(settings["grid"])]
    grouping = method_of(settings, given, layer=16).group(View.of(tokens=tokens, num_kept=settings["budget"]))
    assert (grouping.representatives[0]).tolist() == given["kept"].tolist()


def test_no_slot_is_replaced_and_every_start_is_the_same():
    _, given = RECORDED["qwen0"]
    tokens = torch.stack([given["tokens"], given["tokens"].flip(0)])
    grouping = get("apet").group(View.of(tokens=tokens, num_kept=8))  # fewer than the basis: the published code crashes
    merged = grouping.apply(tokens)
    for cell in range(2):
        for group in range(8):
            mine = tokens[cell][grouping.labels[cell] == group]
            assert_near(merged[cell, group], mine.mean(0), roundings=len(mine) + 1, size=mine.abs().max())
    assert grouping.representatives[1].tolist() == [63 - index for index in grouping.representatives[0].flip(0)]


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("start", [None, 0, 2, 4, 8, 40])
@pytest.mark.parametrize("tokens", [5, 13])
def test_what_is_kept_does_not_depend_on_the_width_of_the_batch(tokens, start, released):
    method = get("apet", fps_start=start, basis=3, released=released)
    own = torch.randn(1, tokens, 32, generator=torch.Generator().manual_seed(tokens))
    alone = method.group(View.of(tokens=own))
    for width in (tokens + 1, 16, 64):
        wide = torch.nn.functional.pad(own, (0, 0, 0, width - tokens), value=7.0)
        view = View.of(tokens=wide, valid=torch.arange(width)[None] < tokens)
        padded = method.group(view.keeping(method.kept(tokens)).blanked())
        assert torch.equal(padded.labels[:, :tokens], alone.labels)
        assert torch.equal(padded.representatives, alone.representatives)


def test_a_start_that_a_frame_does_not_have_is_its_last_token():
    tokens = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    beyond, last = (get("apet", fps_start=start).group(View.of(tokens=tokens, num_kept=2)) for start in (8, 4))
    assert torch.equal(beyond.labels, last.labels)


def test_equal_tokens_and_cells_smaller_than_the_basis_have_errors():
    tokens = torch.ones(2, 12, 4)
    tokens[1, :3] = torch.eye(4)[:3]
    valid = torch.arange(12) < torch.tensor([[12], [3]])
    grouping = get("apet").group(View.of(tokens=tokens, valid=valid, num_kept=[5, 2]))
    assert grouping.counts.sum(1).tolist() == [12, 3]
    assert torch.isfinite(grouping.apply(tokens)).all()
    assert grouping.representatives[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("channels", [4, 9])
def test_of_tokens_that_the_basis_explains_wholly_the_first_come_first(channels):
    tokens = torch.randn(3, 40, channels, generator=torch.Generator().manual_seed(channels))
    present = torch.ones(tokens.shape[:2], dtype=torch.bool)
    assert not residuals(tokens, farthest_samples(tokens, present, 10, None), 1e-5).any()
    assert get("apet").group(View.of(tokens=tokens, num_kept=12)).representatives.tolist() == [list(range(12))] * 3


@pytest.mark.parametrize("factor", [1.0, 1e2, 1e4, 1e6])
def test_norms_far_apart_leave_the_choice_of_fp64(factor):
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        scales = torch.logspace(-0.5, 0.5, 42)[torch.randperm(42, generator=random)] ** math.log10(factor)
        regions = 0.5 + torch.randn(3, 32, generator=random).repeat_interleave(14, dim=0)
        tokens = (regions + 0.3 * torch.randn(1, 42, 32, generator=random)) * scales[:, None]
        basis = farthest_samples(tokens, torch.ones(1, 42, dtype=torch.bool), 10, None)
        expected = by_fp64(tokens, basis)[0].sort(descending=True, stable=True).indices[:14]
        kept = get("apet").group(View.of(tokens=tokens, num_kept=14)).representatives[0]
        assert kept.tolist() == expected.sort().values.tolist()


def by_fp64(tokens, basis):
    wide = tokens.double()
    rows = wide.gather(1, basis[:, :, None].expand(-1, -1, tokens.shape[-1]))
    system = rows @ rows.mT + 1e-5 * torch.eye(basis.shape[1], dtype=torch.float64)
    return (wide - torch.linalg.solve(system, rows @ wide.mT).mT @ rows).norm(dim=-1)


@pytest.mark.parametrize(("channels", "scale"), [(16, 1.0), (64, 30.0), (512, 1.0)])
def test_what_the_basis_leaves_is_that_of_fp64(channels, scale):
    tokens = scale * torch.randn(2, 60, channels, generator=torch.Generator().manual_seed(1))
    basis = farthest_samples(tokens, torch.ones(2, 60, dtype=torch.bool), 10, None)
    exact, rows = by_fp64(tokens, basis), tokens.double().gather(1, basis[:, :, None].expand(-1, -1, channels))
    others = torch.ones(2, 60, dtype=torch.bool).scatter_(1, basis, False)
    found = residuals(tokens, basis, 1e-5)
    assert not found[~others].any()
    condition = float(torch.linalg.cond(rows).max()) ** 2
    bound = torch.finfo(torch.float32).eps * 2 * (channels + 10) ** 0.5 * condition * tokens.double().norm(dim=-1)
    assert ((found - exact).abs() <= bound)[others].all()
