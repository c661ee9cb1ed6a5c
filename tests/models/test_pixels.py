"""The place "pixels": cells that are dropped before the vision tower runs."""

import dataclasses

import numpy as np
import pytest
import torch
from prompts import check_cache, logits, with_types
from support import FAMILIES, IMAGE_ID, Prompt
from test_steps import given_to_the_decoder, traced
from tiles import APART, MODELS, PRUNE, config_of, inputs_of, painted, prompts_of
from tolerances import assert_equal, assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress
from ppe_npu.engine.pixels import Chosen, PixelValues
from ppe_npu.errors import InputError
from ppe_npu.inspect.report import CompressionReport
from ppe_npu.methods import get
from ppe_npu.models import restore
from ppe_npu.models.arguments import make_plan, tower_features
from ppe_npu.models.pixels import KeptPatches, pixel_values, run_on_kept

pytestmark = pytest.mark.half


@pytest.fixture(params=[*FAMILIES, "qwen3_5"])
def family(request):
    if request.param not in MODELS:
        pytest.skip("transformers keeps linear attention's states elsewhere")
    return request.param


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def some(request):
    return request.param


# -- patches in the tower ------------------------------------------------------------------------------------------


def attending_to(attention, kept):
    """A forward of an attention in which queries attend to the kept patches of their segment, and to themselves."""

    def forward(hidden_states, cu_seqlens, position_embeddings, **_):
        query, key, value = attention.qkv(hidden_states).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        cos, sin = (part[:, None].to(query.dtype) for part in position_embeddings)
        half = query.shape[-1] // 2
        query, key = (part * cos + torch.cat([-part[..., half:], part[..., :half]], -1) * sin for part in (query, key))
        patches = torch.arange(len(hidden_states))
        segment = torch.searchsorted(cu_seqlens[1:].long(), patches, right=True)
        seen = ((segment[:, None] == segment) & kept) | (patches[:, None] == patches)
        scores = torch.einsum("qhd,khd->hqk", query, key) * attention.scaling
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return attention.proj(torch.einsum("hqk,khd->qhd", weights, value).flatten(1))

    return forward


def naive_features(model, pixels, grid, kept, monkeypatch, seen=0):
    """The features of kept tokens. All patches go through the tower; the first `seen` blocks attend to all of them, the
    others only to kept ones."""
    visual, made = model.model.visual, []
    hook = visual.merger.register_forward_hook(lambda _m, _a, out: made.append(out))
    with torch.no_grad():
        dense = visual(pixels.to(visual.dtype), grid_thw=grid, return_dict=True).pooler_output
    hook.remove()
    walked = (dense[:, None] - made[0]).abs().sum(-1).argmin(0)  # the place in the picture of each token of the tower
    with monkeypatch.context() as patch, torch.no_grad():
        for block in visual.blocks[seen:]:
            patch.setattr(block.attn, "forward", attending_to(block.attn, kept[walked].repeat_interleave(4)))
        out = visual(pixels.to(visual.dtype), grid_thw=grid, return_dict=True)
    return [part[kept] for part in (out.pooler_output, *(getattr(out, "deepstack_features", None) or ()))]


def test_kept_patches_stay_in_their_places_and_see_each_other(family, monkeypatch):
    model, generator = MODELS[family], torch.Generator().manual_seed(0)
    prompt = Prompt([("image", (1, 5, 7)), ("image", (1, 4, 3)), ("video", (2, 3, 5))], seed=5)
    pixels = torch.cat([*prompt.pixels["image"], *prompt.pixels["video"]])
    grid = torch.tensor([*prompt.grids["image"], *prompt.grids["video"]])
    kept = torch.rand(len(pixels) // 4, generator=generator) < 0.5
    kept[35 + 12 :] = True  # videos keep all cells
    kept[14:28] = False  # whole windows of the first picture are dropped
    sizes = [h * w // 4 for t, h, w in grid.tolist() for _ in range(t)]
    chosen = Chosen.read(torch.where(kept, torch.arange(len(kept)), 0), sizes)
    assert kept[0], "the first one is what the others lean on"

    def found():
        out = run_on_kept(model.model.visual, pixels, KeptPatches.of(chosen, grid, 2, len(pixels)))
        return [part.detach() for part in (out.pooler_output, *(getattr(out, "deepstack_features", None) or ()))]

    plain = naive_features(model, pixels, grid, kept, monkeypatch)
    true = exact(model, lambda: naive_features(model, pixels, grid, kept, monkeypatch))
    assert_rounds_alike(found(), plain, true)


@pytest.mark.parametrize("leave", [1, 2, -1])
def test_cells_may_leave_inside_the_tower_or_behind_it(family, leave, monkeypatch):
    """In a tower of two blocks, leave_after=2 is also behind it."""
    model, video = MODELS[family], "frames" if family in APART else "video"
    prompt = painted([1, ("image", (1, 5, 7)), ("image", (1, 4, 3)), 2, (video, (2, 3, 5)), 1], seed=5)
    inputs = inputs_of(family, prompt)
    compress(model, config_of([{**PRUNE, "leave_after": leave}]))
    plan = make_plan(model.model, model.compression, inputs)
    with torch.no_grad():
        found = tower_features(model.model, plan, inputs)
    kept, seen = plan.chosen.kept, leave if leave > 0 else len(model.model.visual.blocks)
    assert 2 < kept[:47].sum() < 40
    assert kept[47:].all()
    pixels = torch.cat([*prompt.pixels["image"], *prompt.pixels["video"]])
    grid = torch.tensor([*prompt.grids["image"], *prompt.grids["video"]])
    grid = torch.cat([grid[:2], torch.tensor([[1, 6, 10]] * 2)]) if family in APART else grid
    plain = naive_features(restore(model), pixels, grid, kept, monkeypatch, seen)
    true = exact(model, lambda: naive_features(model, pixels, grid, kept, monkeypatch, seen))
    assert_rounds_alike([found.tokens, *found.deepstack], plain, true)
    report = CompressionReport.of(plan, (), 1, plan.watch)
    assert report.tokens_in_tower == 77


def test_all_cells_kept_is_the_dense_tower(family):
    model, prompt = MODELS[family], Prompt([("image", (1, 5, 7)), ("image", (1, 4, 3))], seed=5)
    pixels, grid = torch.cat(prompt.pixels["image"]), torch.tensor(prompt.grids["image"])
    kept = KeptPatches.of(Chosen.read(torch.arange(len(pixels) // 4), [35, 12]), grid, 2, len(pixels))
    visual = model.model.visual
    with torch.no_grad():
        found, dense = run_on_kept(visual, pixels, kept), visual(pixels, grid_thw=grid, return_dict=True)
    assert_equal(found.pooler_output, dense.pooler_output)


def test_a_picture_without_like_cells_is_dense(family):
    model, prompts = MODELS[family], [Prompt(prompt.parts, seed=prompt.seed) for prompt in prompts_of(family)]
    inputs = inputs_of(family, *prompts)
    compress(model, CompressionConfig.preset("dense"))
    dense = logits(model, inputs)[inputs["attention_mask"].bool()]
    for positions in ("ppe", "keep_one"):
        compress(model, config_of([{"method": "pixelprune"}], positions))
        assert_equal(logits(model, inputs)[inputs["attention_mask"].bool()], dense)
        assert model.compression.report.retention == 1


def test_what_one_picture_drops_leaves_the_others_features_alone(some):
    """This holds for another picture in the prompt and for a video, up to rounding: on some CPUs, the rounding of a
    product depends on its number of rows."""
    model, video = MODELS[some], "frames" if some == "qwen3_vl" else "video"
    parts = [1, ("image", (1, 4, 5)), 1, ("image", (1, 3, 3)), 1, (video, (2, 2, 3)), 1]
    plain, other = painted(parts, seed=1), painted(parts, seed=1)
    other.pixels["image"][0] = torch.randn(other.pixels["image"][0].shape, generator=torch.Generator().manual_seed(9))
    one, two = (given_to_the_decoder(model, config_of("alone"), prompt)[0] for prompt in (plain, other))
    assert len(two) > len(one)
    left = model.compression.report.spans[1].after + sum(span.after for span in model.compression.report.spans[2:])
    text = len(plain.ids) - 20 - 9 - 12 - 2  # the text behind the first picture
    with torch.no_grad():
        true = exact(model, lambda: given_to_the_decoder(model, config_of("alone"), plain)[0])
    behind = slice(-(left + text), None)
    assert_rounds_alike(two[behind], one[behind], true[behind], layers=8)


# -- positions and groups ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["keep_one", "ppe", "renumber"])
@pytest.mark.parametrize("k", [2, 4])
def test_positions_are_those_of_the_unpruned_prompt_spread_over_each_group(family, positions, k):
    model, prompt = MODELS[family], prompts_of(family)[0]
    config = config_of("alone", positions, **({"k": k} if positions == "ppe" else {}))
    _, trace, rows = traced(model, config, prompt)
    rows = rows[0][:, 0]
    cells = PixelValues(2, (0.5,) * 3, (0.5,) * 3) if family in APART else model.compression.vision.pixels
    kept, source = get("pixelprune", threshold=0.05).select(cells.cells(prompt.pixels["image"][0], (4, 5), 2))
    kept, source = kept.flatten().nonzero()[:, 0].tolist(), source.flatten().tolist()
    assert 1 < len(kept) < 20
    if positions == "renumber":
        assert rows.tolist() == [list(range(rows.shape[1]))] * 3
        return
    keeps = k if positions == "ppe" else 1
    for place, anchor in enumerate(kept, start=2):
        members = [cell for cell in range(20) if source[cell] == anchor]
        used = min(keeps, len(members))
        # Members spread evenly from the last to the first, then repeated.
        spread = [round((len(members) - 1) * (used - 1 - turn) / max(used - 1, 1) + 1e-9) for turn in range(used)]
        own = [members[at] for at in spread] if positions == "ppe" and used > 1 else [members[-1]]
        own = [anchor] if positions == "keep_one" else own
        expected = [[2, 2 + own[j % len(own)] // 5, 2 + own[j % len(own)] % 5] for j in range(keeps)]
        assert rows[:, place].view(3, keeps).T.tolist() == expected, anchor
    (image, *_) = trace.visuals()
    (groups,) = image.stages
    assert (groups.layer, groups.representatives.tolist()) == ("pixels", kept)
    assert [kept[label] for label in groups.labels.flatten().tolist()] == source


@pytest.mark.parametrize("numbering", ["prompt", "kept"])
def test_text_behind_a_picture_is_numbered_as_is_asked_for(family, numbering):
    model, prompt = MODELS[family], painted([2, ("image", (1, 4, 5)), 3], seed=1)
    pixels = prompt.pixels["image"][0]
    pixels[12:] = pixels[:4].repeat(17, 1)  # all cells from the fourth on equal the first
    _, _, rows = traced(model, config_of([{**PRUNE, "numbering": numbering}], "keep_one"), prompt)
    rows = rows[0][:, 0]
    text, cells = rows[:, -3:], rows[:, 2:-3]
    assert cells.max() < 2 + 4
    first = int(cells.max()) + 1 if numbering == "kept" else 2 + 5
    assert text.tolist() == [[first, first + 1, first + 2]] * 3
    check_cache(model, inputs_of(family, prompt))


def test_later_steps_group_what_is_kept(some):
    """A dropped cell belongs to the group of its anchor."""
    config = config_of([{**PRUNE, "max_kept": 9}, {"method": "dpc_knn", "ratio": 0.5}])
    _, trace, _ = traced(MODELS[some], config, prompts_of(some)[0])
    pixels, merged = trace.visuals()[0].stages
    anchors = pixels.representatives[pixels.labels.flatten()]
    assert len(pixels.representatives) == 9
    assert merged.labels.flatten().tolist() == merged.labels.flatten()[anchors].tolist()
    assert set(merged.representatives) <= set(pixels.representatives)
    for label, held in enumerate(merged.held):
        assert set(held) <= set(np.flatnonzero(merged.labels.flatten() == label))
    report = MODELS[some].compression.report
    assert report.spans[0].after == len(merged.representatives) == 5 == config.tokens_kept((1, 8, 10))


def test_counts_are_bounds_until_they_are_measured(some):
    config = config_of([{**PRUNE, "max_kept": 6, "fill": True}])
    assert config.tokens_kept([(1, 8, 10), (1, 4, 2), (3, 6, 8)]) == [6, 2, 36]
    assert config.tokens_kept((1, 8, 10), video=True) == 20
    assert config_of("alone").tokens_kept((1, 8, 10)) == 20
    logits(compress(MODELS[some], config), inputs_of(some, *prompts_of(some)))
    found = {span.before: span.after for span in MODELS[some].compression.report.spans}
    assert found == {20: 6, 36: 36, 12: 12, 9: 6, 1: 1}
    steps = [{**PRUNE, "max_kept": 6, "fill": True}, {"method": "uniform", "ratio": 0.5}]
    logits(compress(MODELS[some], config_of(steps)), inputs_of(some, prompts_of(some)[0]))
    report = MODELS[some].compression.report
    assert [(span.before, span.tower, span.after) for span in report.spans] == [(20, 6, 3), (36, 36, 18)]
    assert report.to_dict()["tokens_in_tower"] == report.tokens_in_tower == 42


def test_pixels_say_the_number_of_which_a_grid_says_the_bound(some):
    config = config_of([PRUNE, {"method": "uniform", "ratio": 0.5}])
    prompt = painted([1, ("image", (1, 4, 5)), ("image", (1, 3, 3)), 2], seed=1)
    model = compress(MODELS[some], config)
    logits(model, inputs_of(some, prompt))
    values = model.compression.vision.pixels
    cells = [
        values.cells(own, (h // 2, w // 2), 2) for own, (_, h, w) in zip(prompt.pixels["image"], prompt.grids["image"])
    ]
    grids, counted = prompt.grids["image"], [span.after for span in model.compression.report.spans]
    assert config.tokens_kept(grids, pixels=cells) == counted
    assert config.tokens_kept(grids[0], pixels=cells[0]) == counted[0] < config.tokens_kept(grids[0]) == 10
    assert config.tokens_kept(grids, pixels=[None, cells[1]]) == [10, counted[1]]
    exact = config_of([{**PRUNE, "max_kept": 3, "fill": True}])
    assert exact.tokens_kept(grids[0], pixels=cells[0]) == 3


def test_a_video_alone_stays_as_it_is(some):
    prompt = Prompt([1, ("frames" if some == "qwen3_vl" else "video", (2, 2, 3)), 2], seed=1)
    _, trace, _ = traced(MODELS[some], config_of("alone"), prompt)
    (groups,) = trace.visuals()[0].stages
    assert groups.labels.flatten().tolist() == list(range(12))


# -- pixel values, and refusals ------------------------------------------------------------------------------------


def test_the_normalisation_is_undone_by_the_processors_own_numbers():
    picture = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))  # cells of 2 x 2 pixels, patches of one
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    normal = (picture - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    rows = normal.unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 3, 4, 0).reshape(-1, 3)
    rows = torch.stack([rows, torch.full_like(rows, 9)], dim=2).flatten(1)  # the second frame is ignored
    cells = PixelValues(2, mean, std).cells(rows, (2, 3), 2)
    expected = picture.unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 3, 4, 0).reshape(2, 3, 12)
    assert torch.equal(cells.mul(2**20).round(), expected.mul(2**20).round())
    with pytest.raises(InputError, match="7 values per patch, which do not divide into 3 channels of 2 frames"):
        PixelValues(2, mean, std).cells(torch.zeros(8, 7), (1, 2), 2)


def test_pixels_that_are_no_numbers_are_refused_wherever_they_stand(some):
    inputs = inputs_of(some, painted([1, ("image", (1, 4, 5)), 2], seed=1))
    model, patches = compress(MODELS[some], config_of("alone")), inputs["pixel_values"]
    for place in ((0, 0), (17, 3), (79, 70)):  # in the first frame; the second is ignored
        inputs["pixel_values"] = patches.clone()
        inputs["pixel_values"][place] = torch.nan
        with pytest.raises(InputError, match="pixel_values hold NaN or infinite values: give a processor's output"):
            logits(model, inputs)


def test_a_processor_or_a_checkpoint_says_the_normalisation(tmp_path):
    model = MODELS["qwen3_vl"]
    vision = compress(model, config_of("alone")).compression.vision
    assert (vision.pixels.mean, vision.pixels.scale) == ((0.5,) * 3, 1)

    class Processor:
        image_mean, image_std, do_normalize, do_rescale, rescale_factor = (
            [0.1, 0.2, 0.3],
            [1, 2, 3],
            True,
            True,
            2 / 255,
        )

    found = compress(model, config_of("alone"), Processor()).compression.vision.pixels
    assert found == PixelValues(2, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 0.5)
    Processor.do_normalize = Processor.do_rescale = False
    assert pixel_values(model, vision, Processor()).pixels == PixelValues(2, (0.0,) * 3, (1.0,) * 3, 1 / 255)
    Processor.do_normalize, Processor.image_std = True, [1, 2]
    with pytest.raises(InputError, match=r"image_std \(1\.0, 2\.0\) do not have one value for each channel: save the"):
        pixel_values(model, vision, Processor())
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    model.config._name_or_path = str(tmp_path)
    assert compress(model, config_of("alone")).compression.vision.pixels.mean == (0.0,) * 3
    model.config._name_or_path = ""


def test_what_has_no_pixels_is_refused(some):
    model, inputs = restore(MODELS[some]), inputs_of(some, painted([1, ("image", (1, 3, 3)), 2], seed=1))
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    compress(model, config_of("alone"))
    with pytest.raises(InputError, match=r"pixelprune looks at the pixels of images.*give pixel_values"):
        model(input_ids=inputs["input_ids"], inputs_embeds=embeds, image_grid_thw=inputs["image_grid_thw"])
    # Text without pictures needs no pixels.
    assert torch.isfinite(logits(model, inputs_of(some, Prompt([4])))).all()


def test_labels_and_embeddings_beside_pixels(some):
    model, inputs = (
        compress(MODELS[some], config_of("alone")),
        inputs_of(some, painted([1, ("image", (1, 3, 3)), 2], 1)),
    )
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    whole = logits(model, with_types(inputs))
    assert torch.equal(logits(model, {**inputs, "input_ids": None, "inputs_embeds": embeds}), whole)
    assert whole.shape[1] < inputs["input_ids"].shape[1]
    assert (inputs["input_ids"] == IMAGE_ID).sum() == 9
    assert dataclasses.is_dataclass(model.compression.last.chosen)
