"""IPCV inside a tower, against its definition, with other steps around it, and for every sample alone."""

import pytest
import torch
from families import EVERY
from naive_ipcv import METHOD, PROMPTS, TOWERS, clip, config, features, given, naive, run
from prompts import GREEDY, logits
from support import QUICK_FAMILIES, Prompt, family_of, model_with, random_model
from tolerances import assert_equal, assert_rounds_alike, exact
from tower_laws import check_attending, check_checkpoints, check_looking, check_work

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.errors import InputError
from ppe_npu.methods import DART, DPCKNN, IPCV, FastV, PixelPrune, VisionZip

pytestmark = pytest.mark.half

SETTINGS = {
    "usual": METHOD,
    "none stabilized": IPCV(keep=0.5, prune_block=3, stabilized_blocks=0, neighbors=1),
    "all stabilized": IPCV(keep=0.3, prune_block=1, stabilized_blocks=9, neighbors=10),
    "few stay": IPCV(keep=0.04, prune_block=4, stabilized_blocks=2, neighbors=10),
}

family, model = family_of(QUICK_FAMILIES), model_with(TOWERS)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_towers_output_is_that_of_the_definition(model, family, name, kind):
    method = SETTINGS[name]
    inputs = given(family, PROMPTS[0] if kind == "image" else clip(family))
    grid = inputs[f"{kind}_grid_thw"]
    pixels = inputs["pixel_values" if kind == "image" else "pixel_values_videos"]
    with torch.no_grad():
        oracle = lambda: features(naive(model.model.visual, pixels, grid, method, [len(pixels)]))  # noqa: E731
        plain, true = oracle(), exact(model, oracle)
        compress(model, config(method))
        assert_rounds_alike(features(run(model, inputs, kind)), plain, true, layers=8)


def test_patches_compete_within_a_prompts_images_and_its_videos_or_each_image(model, family):
    """Patches compete only within their pool, so features depend neither on the batch nor on a call's other images."""
    mixed = Prompt([1, ("image", (1, 5, 4)), 2, *clip(family).parts], seed=7)
    inputs, visual = given(family, PROMPTS[0], mixed), model.model.visual
    pixels = torch.cat([inputs["pixel_values"], inputs["pixel_values_videos"]])
    grid = torch.cat([inputs["image_grid_thw"], inputs["video_grid_thw"]])
    for method, pools in ((METHOD, [164, 80, 144]), (IPCV(prune_block=2, per_image=True), [140, 24, 80, 144])):
        expected = []
        compress(restore(model), config(method))
        hook = visual.register_forward_hook(lambda _m, _a, output, seen=expected: seen.append(features(output)))
        logits(model, inputs)
        hook.remove()
        restore(model)
        with torch.no_grad():
            oracle = lambda: features(naive(visual, pixels, grid, method, pools))  # noqa: B023, E731
            assert_rounds_alike(expected[0], oracle(), exact(model, oracle), layers=8)
    alone = compress(model, config(IPCV(prune_block=2, per_image=True)))
    with torch.no_grad():
        whole = features(run(alone, inputs))[0]
        first = alone.model.visual(pixels[:140], grid_thw=grid[:1]).pooler_output
        again = lambda: alone.model.visual(pixels[:140].to(alone.dtype), grid_thw=grid[:1]).pooler_output  # noqa: E731
        assert_rounds_alike(whole[:35], first, exact(alone, again), layers=8)


@pytest.mark.parametrize(
    "method", [METHOD, IPCV(0.9, prune_block=2, stabilized_blocks=1, released=True)], ids=["usual", "released"]
)
def test_a_prompt_gives_what_it_gives_alone(model, family, method):
    """Batches are padded and mix images with videos. The published code's wrong borders cross frames, but not
    prompts."""
    inputs, prompts = given(family), (*PROMPTS, clip(family))
    compress(model, config(method))
    together = logits(model, inputs)
    for row, prompt in zip(together, prompts):
        alone = given(family, prompt)
        found = logits(model, alone)[0]
        assert_rounds_alike(row[-len(found) :], found, exact(model, lambda one=alone: logits(model, one))[0], layers=11)


def test_all_patches_kept_or_too_few_blocks_are_the_tower_as_it_is(model, family):
    inputs = given(family)
    plain = logits(compress(model, CompressionConfig.preset("dense")), inputs)
    for method in (IPCV(keep=1.0), IPCV(prune_block=8), IPCV(prune_block=30)):
        assert_equal(logits(compress(model, config(method)), inputs), plain)


@pytest.mark.parametrize("kind", ["eager", "fused", "shown"])
def test_it_does_not_hang_on_how_the_tower_attends_or_on_who_looks(model, family, kind):
    check_attending(model, family, METHOD, kind)


# -- training --------------------------------------------------------------------------------------------------------


def gradients(model, outputs):
    """Gradients of all the tower's parameters, for a randomly weighted sum of its outputs."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(0)
    total = sum((part * torch.randn(part.shape, generator=generator).to(part)).sum() for part in outputs)
    total.backward()
    return {name: p.grad.clone() for name, p in model.model.visual.named_parameters() if p.grad is not None}


def test_gradients_flow_through_the_rebuilt_tokens(model, family):
    inputs = given(family, PROMPTS[0])
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    oracle = lambda: gradients(model, features(naive(model.model.visual, pixels, grid, METHOD, [len(pixels)])))  # noqa: E731
    plain, true = oracle(), exact(model, oracle)
    compress(model, config())
    assert_rounds_alike(gradients(model, features(run(model, inputs))), plain, true, layers=8)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model, family, reentrant):
    check_checkpoints(model, given(family), METHOD, reentrant)


def test_lora_on_the_tower_trains():
    from peft import LoraConfig, get_peft_model

    base = random_model(tower=TOWERS["qwen2_5_vl"])
    model = get_peft_model(base, LoraConfig(r=2, target_modules=r".*visual\.blocks.*\.(qkv|proj|down_proj)"))
    compress(model, config(METHOD, DPCKNN(0.5))).train()
    inputs = given("qwen2_5_vl", PROMPTS[0], clip("qwen2_5_vl"))
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        blocks = {name.split("blocks.")[1].split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert blocks == {str(number) for number in range(8)}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# -- with other steps --------------------------------------------------------------------------------------------------

FOLLOWING = {
    "PPE": ([DPCKNN(0.5)], {"positions": "ppe", "k": 4}),
    "dart": ([DART(0.5, layer=1)], {}),
    "dart released": ([DART(0.5, layer=1, pivot_image=2, pivot_text=1, released=True)], {}),
    "fastv": ([FastV(0.5, layer=1)], {"positions": "ppe", "k": 4}),
    "visionzip": ([VisionZip(0.5, tower_windows="frame")], {}),
    "two": ([DPCKNN(0.6), FastV(0.5, layer=1)], {"positions": "ppe", "k": 4}),
    "pixels": ([PixelPrune(threshold=0.5)], {}),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_every_step_goes_with_it(model, family, name):
    steps, settings = FOLLOWING[name]
    inputs = given(family)
    compress(model, config(METHOD, *steps, **settings))
    out = logits(model, inputs)
    assert torch.isfinite(out).all()
    compress(model, config(*steps, **settings))
    assert logits(model, inputs).shape == out.shape
    if name != "pixels":
        compress(model, config(METHOD))
        assert model.compression.report is None
        logits(model, inputs)
        assert model.compression.report.retention == 1
    compress(model, config(METHOD, *steps, **settings))
    ids = model.generate(**inputs, max_new_tokens=3, **GREEDY)
    first = out[:, -1].clone()
    first[:, GREEDY["suppress_tokens"]] = -torch.inf
    assert ids[:, inputs["input_ids"].shape[1]].tolist() == first.argmax(-1).tolist()


def test_what_looks_into_the_tower_sees_rebuilt_patches(model, family):
    check_looking(model, given(family), METHOD, (2, -1))  # blocks with the leaving patches as keys, and without them


def test_the_report_tells_the_towers_work_beside_the_decoders(model, family):
    nearest = 2 * (164 - 57) * 57 * 32  # FLOPs of the product that finds neighbours
    told = check_work(model, given(family, PROMPTS[0]), METHOD, apart=nearest)
    assert told.patches == [164, 164] + [int(164 * 0.35)] * 6
    report = model.compression.report.to_dict()["tower"]
    assert (report["flops"], report["dense_flops"]) == (told.flops, told.dense_flops)
    assert (report["decoder_flops"], report["milliseconds"] > 0) == (told.decoder, True)
    assert report["decoder_milliseconds"] == told.decoding.milliseconds > 0
    share = f"({told.flops / told.dense_flops:.1%} of untouched) in {told.watch.milliseconds:.1f} ms; decoder "
    assert share in str(told)
    assert str(told).endswith(f" GFLOP in {told.decoding.milliseconds:.1f} ms")
    compress(model, CompressionConfig.preset("dense"))
    logits(model, given(family, PROMPTS[0]))
    assert model.compression.report.in_tower is None
    assert "tower" not in model.compression.report.to_dict()


def test_what_cannot_be_is_refused_by_name(model, family):
    with pytest.raises(InputError, match="ipcv after ipcv: only one can run inside the vision tower"):
        compress(model, config(METHOD, IPCV(keep=0.5)))
    with pytest.raises(InputError, match=r"ipcv with layer=2: it cannot run at a decoder layer"):
        IPCV(layer=2)
    for key, value in (("keep", 0), ("keep", 1.5), ("prune_block", 0), ("neighbors", 0), ("stabilized_blocks", -1)):
        with pytest.raises(InputError, match=f"{key}={value}"):
            IPCV(**{key: value})
    model.model.visual.blocks[1] = torch.nn.Identity()
    with pytest.raises(InputError, match=r"the vision tower has a block of class 'Identity': .*load a model"):
        compress(model, config())


@pytest.mark.parametrize("like", ["qwen3_5", "qwen3_vl_moe", "qwen3_5_moe"])
def test_towers_of_the_other_qwens_are_like_qwen3_vls(like):
    if like not in EVERY:
        pytest.skip("transformers keeps linear attention's states elsewhere")
    settings = {"depth": 8} if "qwen3_5" in like else TOWERS["qwen3_vl"]
    model = random_model(family=like, tower=settings)
    prompts = (PROMPTS[0], clip("qwen3_vl"))
    inputs = given("qwen3_vl", *prompts)
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    with torch.no_grad():
        oracle = lambda: features(naive(model.model.visual, pixels, grid, METHOD, [len(pixels)]))  # noqa: E731
        plain, true = oracle(), exact(model, oracle)
        compress(model, config(METHOD, DPCKNN(0.5), positions="ppe", k=2))
        assert_rounds_alike(features(run(model, inputs)), plain, true, layers=8)
    for row, prompt in zip(logits(model, inputs), () if like.endswith("moe") else prompts):  # experts have no fp64
        alone = given("qwen3_vl", prompt)
        found = logits(model, alone)[0]
        assert_rounds_alike(row[-len(found) :], found, exact(model, lambda one=alone: logits(model, one))[0], layers=11)
