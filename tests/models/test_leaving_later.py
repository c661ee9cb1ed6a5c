"""PixelPrune's cells that leave inside the vision tower or after it, combined with other features. test_pixels.py
compares their features with a naive tower, and test_pixelprune_recorded.py with recorded runs."""

import pytest
import torch
from naive_ipcv import config, features
from support import family_of, model_with
from test_packing import text_labels
from tiles import TOWERS, inputs_of, painted, prompts_of
from tolerances import assert_equal, assert_rounds_alike, exact, near
from tower_laws import check_checkpoints, check_work
from towers import VIEWS, Looks

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.engine.items import check_items
from ppe_npu.errors import InputError
from ppe_npu.methods import IPCV, PixelPrune, ToMeTower
from ppe_npu.models.fused import fuse
from ppe_npu.models.loss import Distillation

pytestmark = pytest.mark.half
INSIDE, BEHIND = PixelPrune(threshold=0.05, leave_after=1), PixelPrune(threshold=0.05, leave_after=-1)

family, model = family_of(["qwen2_5_vl", "qwen3_vl"]), model_with(TOWERS)


def view_of(model, inputs, *steps):
    """The view of one picture in a method that looks into two blocks: keys [tokens, D], saliency [2, tokens]."""
    VIEWS.clear()
    compress(model, config(*steps, Looks(named=(0, 1), windows="frame")))
    with torch.no_grad():
        model(**inputs)
    (view,) = VIEWS
    return view.tower_keys[0], view.tower_saliency[0]


@pytest.mark.parametrize("method", [INSIDE, BEHIND], ids=["inside", "behind"])
def test_what_looks_into_the_tower_is_shown_the_kept_cells(model, family, method):
    """A block before cells leave is seen as it ran on all cells, a later one as it ran on the rest."""
    inputs = inputs_of(family, painted([2, ("image", (1, 5, 7)), 3], seed=1))
    found, scores = view_of(model, inputs, method)
    kept = model.compression.last.chosen.kept
    assert 1 < kept.sum() == len(found) < 35

    def dense():
        keys, scores = view_of(model, inputs)
        return keys[kept], scores[:, kept]

    (keys, all_scores), true = dense(), exact(model, dense)
    assert_rounds_alike(found, keys, true[0])
    assert_rounds_alike(scores[0], all_scores[0], true[1][0])
    if method is BEHIND:
        assert_rounds_alike(scores[1], all_scores[1], true[1][1])
    else:
        assert scores[1].sum().item() == near(1.0, len(found), torch.float32)


@pytest.mark.parametrize("kind", ["eager", "fused"])
def test_it_does_not_hang_on_how_the_tower_attends(model, family, kind):
    inputs = inputs_of(family, prompts_of(family)[0])  # without padding, for which fused attention differs
    compress(model, config(INSIDE))

    def run():
        with torch.no_grad():
            return model(**inputs).logits

    plain, true = run(), exact(model, run)
    if kind == "fused":
        fuse(model)
    else:
        model.model.visual.set_attn_implementation("eager")
    assert_rounds_alike(run(), plain, true, layers=8)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_survive_checkpointing(model, family, reentrant):
    check_checkpoints(model, inputs_of(family, prompts_of(family)[0]), INSIDE, reentrant)


def test_the_report_counts_what_the_tower_did(model, family):
    told = check_work(model, inputs_of(family, painted([2, ("image", (1, 5, 7)), 3], seed=1)), INSIDE)
    left = 4 * int(model.compression.last.chosen.kept.sum())
    assert told.patches == [140] + [left] * (len(told.patches) - 1)


def test_the_teacher_and_a_direct_call_see_all_cells(model, family):
    inputs = inputs_of(family, *prompts_of(family), side="right")
    given = inputs["pixel_values"], inputs["image_grid_thw"]
    with torch.no_grad():
        plain = features(model.model.visual(given[0], grid_thw=given[1]))
        compress(fuse(model), config(INSIDE))
        for one, other in zip(features(model.model.visual(given[0], grid_thw=given[1])), plain, strict=True):
            assert_equal(one, other)
    learns = model.train()(**inputs, labels=text_labels(inputs), skip_logits=True, distill=Distillation(1.0))
    assert learns.loss > 0
    learns.loss.backward()
    assert next(model.model.visual.blocks[0].mlp.parameters()).grad.abs().max() > 0
    restore(model)
    assert "compression" not in vars(model.model.visual)


def test_what_has_no_place_beside_it_is_refused(model):
    for method, other in ((INSIDE, IPCV()), (BEHIND, ToMeTower(merge_blocks=(0,)))):
        with pytest.raises(InputError, match=f"{other.name} after pixelprune with leave_after={method.leave_after}"):
            compress(model, config(method, other))
    compress(model, config(INSIDE))
    with pytest.raises(
        InputError, match=f"pixelprune leave_after={INSIDE.leave_after}: a serving engine gets only kept"
    ):
        check_items(model.compression)
    with pytest.raises(InputError, match=r"pixelprune leave_after=80: the vision tower has \d blocks"):
        compress(model, config(PixelPrune(leave_after=80)))
    with pytest.raises(InputError, match=r"leave_after=-2: give a number of tower blocks, or -1"):
        CompressionConfig.from_dict({"steps": [{"method": "pixelprune", "leave_after": -2}], "positions": "keep_one"})


def test_files_of_an_edition_without_it_are_those_of_today():
    assert "leave_after" not in PixelPrune(threshold=0.1).to_dict()
    for method in (PixelPrune(leave_after=2), PixelPrune(leave_after=-1), PixelPrune()):
        assert PixelPrune.from_dict(method.to_dict()) == method
