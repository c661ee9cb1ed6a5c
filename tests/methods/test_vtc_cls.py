"""VTC-CLS against recorded runs of the published code."""

import pytest
import torch
from recorded import case_names, cases

from ppe_npu.errors import InputError
from ppe_npu.methods import get
from ppe_npu.methods.view import View

RECORDED = cases("vtc_cls")


@pytest.mark.parametrize("case", case_names("vtc_cls"))
def test_the_choice_is_the_published_one(case):
    settings, given = RECORDED[case]
    method = get("vtc_cls", start_layer=settings["start_layer"])
    blocks = method.blocks(settings["layers"])
    assert len(blocks) == settings["summed_layers"]
    rows = given["cls_rows"].mean(1)[list(blocks)][None]
    view = View.of(tokens=torch.randn(1, rows.shape[-1], 4), tower_saliency=rows, num_kept=settings["budget"])
    assert method.group(view).representatives[0].tolist() == given["kept"].tolist()
    summed = View.of(tower_saliency=rows.sum(1), num_kept=settings["budget"])  # the shape of a single block's rows
    assert method.group(summed).representatives[0].tolist() == given["kept"].tolist()


@pytest.mark.parametrize(
    ("start", "count", "blocks"),
    [(None, 32, range(16, 31)), (None, 2, [1]), (None, 1, [0]), (-4, 24, [20, 21, 22]), (23, 24, [23])],
)
def test_blocks_go_from_the_first_to_the_last_but_one(start, count, blocks):
    assert get("vtc_cls", start_layer=start).blocks(count) == tuple(blocks)


def test_a_block_that_is_not_there():
    with pytest.raises(InputError, match="vtc_cls: the vision tower has 12 blocks, but no block 14; give 0 to 11"):
        get("vtc_cls", start_layer=14).blocks(12)
