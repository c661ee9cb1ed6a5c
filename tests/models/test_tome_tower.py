"""Cells joined inside a tower, against the definition, with other steps around it, and for each sample alone."""

import pytest
import torch
from naive_ipcv import PROMPTS, TOWERS, clip, config, features, given, run
from naive_tome import naive
from prompts import GREEDY, check_alone, check_cache, kept_logits, logits
from support import QUICK_FAMILIES, Prompt, family_of, model_with, random_model
from test_ipcv_laws import gradients
from test_ipcv_passes import waits
from tolerances import assert_equal, assert_rounds_alike, exact
from tower_laws import check_attending, check_checkpoints, check_looking, check_work

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN, IPCV, FastV, PixelPrune, ToMeTower, VisionZip
from ppe_npu.methods.tower_methods import group_offsets
from ppe_npu.methods.view import View
from ppe_npu.models.fused import fuse

pytestmark = pytest.mark.half

METHOD = ToMeTower(0.4, merge_blocks=(1, 3, -3))
SETTINGS = {"usual": METHOD, "few": ToMeTower(0.1, merge_blocks=(0,)), "late": ToMeTower(0.7, merge_blocks=(6, 7))}
ALONE = [*PROMPTS, Prompt([2, ("image", (1, 1, 2)), 1, ("image", (1, 1, 3)), 1], seed=8)]

family, model = family_of(QUICK_FAMILIES), model_with(TOWERS)


def frames_of(grid):
    """The number of cells of each frame."""
    return [h * w // 4 for t, h, w in grid.tolist() for _ in range(t)]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_towers_output_is_that_of_the_definition(model, family, name, kind):
    method, inputs = SETTINGS[name], given(family, PROMPTS[0] if kind == "image" else clip(family))
    grid = inputs[f"{kind}_grid_thw"]
    pixels = inputs["pixel_values" if kind == "image" else "pixel_values_videos"]
    with torch.no_grad():
        oracle = lambda: features(naive(model.model.visual, pixels, grid, method, frames_of(grid))[0])  # noqa: E731
        plain, true = oracle(), exact(model, oracle)
        compress(model, config(method))
        assert_rounds_alike(features(run(model, inputs, kind)), plain, true, layers=8)


def test_the_decoder_is_given_a_groups_mean_at_its_members_positions(model, family):
    """Groups are those of the definition, counts follow from the grid, and K = 2 positions are those of members."""
    inputs = given(family, PROMPTS[0])
    grid, visual = inputs["image_grid_thw"], model.model.visual
    with torch.no_grad():
        _, stands = naive(visual, inputs["pixel_values"], grid, METHOD, frames_of(grid))
    order = order_of(model, inputs)
    expected = [order.index(stands[at]) for at in order]
    found = group_offsets(torch.tensor(stands), torch.tensor(order)) + torch.arange(len(order))
    assert found.tolist() == expected
    settings = CompressionConfig(steps=[METHOD], positions="ppe", k=2, members="last")
    compress(model, settings).compression.keep_groups = True
    logits(model, inputs)
    first = 0
    for visual, before in zip(model.compression.trace.visuals(), frames_of(grid)):
        (groups,) = visual.stages
        own = [stands - first for stands in expected[first : first + before]]
        assert groups.representatives[groups.labels.reshape(-1)].tolist() == own
        kept = settings.tokens_kept([1, 2 * groups.labels.shape[1], 2 * groups.labels.shape[2]])
        assert len(groups.representatives) == kept == -(-before * 2 // 5)
        for token, held in enumerate(groups.held.tolist()):
            members = (groups.labels.reshape(-1) == token).nonzero()[0].tolist()
            assert held == [members[-1], members[-2] if len(members) > 1 else members[-1]]
        first += before


def order_of(model, inputs):
    """Each token's row in the tower, whose rows may be in window order, found by comparing outputs of the merger."""
    caught = []
    hook = model.model.visual.merger.register_forward_hook(lambda _m, _a, out: caught.append(out))
    with torch.no_grad():
        out = features(run(model, inputs))[0]
    hook.remove()
    return (out[:, None] - caught[0][None]).abs().sum(-1).argmin(1).tolist()


def test_a_prompts_result_depends_on_the_prompt_alone(model, family):
    """It does not depend on padding, batch mates, their order, or fused operators. Prompts include videos and pictures
    of two or three cells."""
    prompts = [*ALONE, clip(family)]
    fused = fuse(random_model(family=family, tower=TOWERS[family]))
    settings = CompressionConfig(steps=[METHOD], positions="ppe", k=2)
    compress(fused, settings)
    expected = check_alone(compress(model, settings), fused, prompts, kept_logits, pad_to=90)
    assert len(expected[0]) < len(prompts[0].ids)


def test_all_cells_kept_are_the_tower_as_it_is(model, family):
    prompts = [*ALONE, clip(family)]
    plain = kept_logits(compress(model, CompressionConfig.preset("dense")), *prompts)
    for found, own in zip(kept_logits(compress(model, config(ToMeTower(1.0, merge_blocks=(2,)))), *prompts), plain):
        assert_equal(found, own)


@pytest.mark.parametrize("kind", ["eager", "fused", "shown"])
def test_it_does_not_hang_on_how_the_tower_attends_or_on_who_looks(model, family, kind):
    check_attending(model, family, METHOD, kind)


@pytest.mark.slow
def test_the_cache_goes_on_from_joined_cells(model, family):
    compress(model, CompressionConfig(steps=[METHOD], positions="ppe", k=4))
    check_cache(model, given(family))


# -- training --------------------------------------------------------------------------------------------------------


def test_gradients_flow_through_joined_cells(model, family):
    inputs = given(family, PROMPTS[0])
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]

    def oracle():
        return gradients(model, features(naive(model.model.visual, pixels, grid, METHOD, frames_of(grid))[0]))

    plain, true = oracle(), exact(model, oracle)
    compress(model, config(METHOD))
    assert_rounds_alike(gradients(model, features(run(model, inputs))), plain, true, layers=8)


@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.ci
def test_gradient_checkpointing_gives_the_same_gradients(model, family, reentrant):
    check_checkpoints(model, given(family), METHOD, reentrant)


# -- with other steps --------------------------------------------------------------------------------------------------

FOLLOWING = {
    "PPE": ([DPCKNN(0.5)], {"positions": "ppe", "k": 4}),
    "fastv": ([FastV(0.5, layer=1)], {"positions": "ppe", "k": 4}),
    "visionzip": ([VisionZip(0.5, tower_windows="frame")], {}),
    "proportional": ([DPCKNN(0.6)], {"proportional_attention": True}),
    "pixels": ([PixelPrune(threshold=0.5)], {}),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_every_step_goes_with_it(model, family, name):
    steps, settings = FOLLOWING[name]
    inputs, both = given(family), config(METHOD, *steps, **settings)
    compress(model, both)
    out = logits(model, inputs)
    assert torch.isfinite(out).all()
    grids = [*inputs["image_grid_thw"].tolist(), *inputs["video_grid_thw"].tolist()]
    if name != "pixels":
        assert model.compression.report.tokens_after == sum(map(both.tokens_kept, grids))
    ids = model.generate(**inputs, max_new_tokens=3, **GREEDY)
    first = out[:, -1].clone()
    first[:, GREEDY["suppress_tokens"]] = -torch.inf
    assert ids[:, inputs["input_ids"].shape[1]].tolist() == first.argmax(-1).tolist()


def test_looking_into_the_tower_changes_nothing(model, family):
    check_looking(model, given(family), METHOD, (3, 4, -1))  # a block that joins cells, the next one, and the last


def test_the_report_tells_the_towers_work(model, family):
    told = check_work(model, given(family, PROMPTS[0]), METHOD)
    # 35 and 6 cells are reduced to 14 and 3 in three steps.
    assert told.patches == [4 * (35 + 6)] + [4 * (28 + 5)] * 2 + [4 * (21 + 4)] * 2 + [4 * (14 + 3)] * 3
    assert model.compression.report.tokens_after == 17


def test_the_host_waits_for_windows_alone(model, family, monkeypatch):
    """It waits at most once more than for the plain tower, and in Qwen2.5-VL, whose blocks attend in windows, once more
    for each block that joins cells."""
    inputs = given(family, PROMPTS[0])
    fuse(model)
    plain = waits(run, model, inputs, monkeypatch)
    compress(model, config(METHOD))
    run(model, inputs)
    assert waits(run, model, inputs, monkeypatch) <= plain + 1 + (3 if family == "qwen2_5_vl" else 0)


def test_what_cannot_be_is_refused_by_name(model, family):
    with pytest.raises(InputError, match=r"tome_tower merge_blocks=\[8\]: the vision tower has 8 blocks"):
        compress(model, config(ToMeTower(merge_blocks=(8,))))
    with pytest.raises(InputError, match=r"tome_tower merge_blocks=\[-1, 7\]: .* different ones from 0 to 7"):
        compress(model, config(ToMeTower(merge_blocks=(7, -1))))
    with pytest.raises(InputError, match="ipcv after tome_tower: only one can run inside the vision tower"):
        compress(model, config(METHOD, IPCV()))
    for blocks in ((), (1, 1)):
        with pytest.raises(InputError, match=rf"merge_blocks=\[{', '.join(map(str, blocks))}\]: give different"):
            ToMeTower(merge_blocks=blocks)
    compress(model, config(METHOD))
    inputs = given(family, PROMPTS[0])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    ready = {"inputs_embeds": embeds, "image_grid_thw": inputs["image_grid_thw"]}
    with pytest.raises(InputError, match="tome_tower must look into the vision tower, but inputs_embeds"):
        model(**ready, attention_mask=inputs["attention_mask"])
    with pytest.raises(InputError, match="tome_tower looks at tower_groups"):
        METHOD.group(View.of(tokens=torch.zeros(1, 4, 2)))
    groups = torch.tensor([[0, -1, 0, 0], [0, 0, -1, -1]])
    with pytest.raises(InputError, match=r"num_kept=\[3, 1\], tower_groups has \[3, 2\] groups: give View.of these as"):
        METHOD.group(View.of(tower_groups=groups, num_kept=[3, 1]))
    assert METHOD.group(View.of(tower_groups=groups, num_kept=[3, 2])).counts.tolist() == [[2, 1, 1], [1, 3, 0]]
    restore(model)
