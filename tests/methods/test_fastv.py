"""FastV and PyramidDrop against recorded runs of their published code."""

import pytest
import torch
from recorded import case_names, cases
from tolerances import assert_near

from ppe_npu.errors import InputError
from ppe_npu.methods import get
from ppe_npu.methods.view import View
from ppe_npu.models.looking import attention_row

FASTV, DROP = cases("fastv"), cases("pyramiddrop")


@pytest.mark.parametrize("case", case_names("fastv"))
def test_fastv_keeps_what_the_published_code_keeps(case):
    settings, given = FASTV[case]
    start, count = settings["image_start"], settings["grid"][0] * settings["grid"][1]
    keys = given["keys"].transpose(0, 1)[None]
    row = attention_row(given["q_last"][None], keys, torch.ones(1, keys.shape[1], dtype=torch.bool), given["qk_scale"])
    assert_near(row[0], given["last_row"].mean(0), roundings=2**6, size=1)
    view = View.of(tokens=torch.randn(1, count, 8), layer_row=given["last_row"].mean(0)[None, start : start + count])
    kept = get("fastv", ratio=1 - settings["reduction_ratio"]).group(view)
    assert kept.representatives[0].tolist() == given["kept"].tolist()
    there = torch.cat(
        [torch.arange(start), start + kept.representatives[0], torch.arange(start + count, keys.shape[1])]
    )
    assert there.tolist() == given["positions"].tolist()


@pytest.mark.parametrize("case", case_names("pyramiddrop"))
def test_pyramiddrop_keeps_what_the_published_code_keeps(case):
    settings, given = DROP[case]
    sizes, starts = settings["tokens_before"], settings["image_start"]
    mask = given["mask"].bool()
    row = attention_row(given["q_last"], given["keys"].transpose(1, 2), mask, settings["head_dim"] ** -0.5)
    tokens, rows = (torch.zeros(len(sizes), max(sizes), *more) for more in ((given["hidden"].shape[-1],), ()))
    for cell, (start, size) in enumerate(zip(starts, sizes)):
        tokens[cell, :size] = given["hidden"][cell, start : start + size]
        rows[cell, :size] = row[cell, start : start + size]
    valid = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    kept = get("pyramiddrop", dropped="drop").group(View.of(tokens=tokens, valid=valid, layer_row=rows))
    merged = kept.apply(tokens)
    for cell, (start, budget) in enumerate(zip(starts, settings["budget"])):
        assert kept.counts[cell].sum() == budget
        assert kept.representatives[cell, :budget].tolist() == given[f"kept{cell}"].tolist()
        assert torch.equal(merged[cell, :budget], given["new_hidden"][cell, start : start + budget])


def test_they_look_at_different_layers():
    assert get("fastv").layer_before
    assert not get("pyramiddrop").layer_before
    assert get("pyramiddrop").layers == (8, 16, 24)
    with pytest.raises(InputError, match="fastv with layer=0: it looks at the layer before that; give 1 or more"):
        get("fastv", layer=0)
    with pytest.raises(InputError, match="pyramiddrop with layer=None: it needs a layer; give one"):
        get("pyramiddrop", layer=None)
    assert [get("fastv", ratio=ratio).kept(10) for ratio in (0.1, 0.39, 0.05, 1.0)] == [1, 3, 1, 10]
