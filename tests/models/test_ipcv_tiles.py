"""IPCV inside InternVL's tower, whose tiles have a class token each, against its definition, and its laws."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from families import EVERY, supported, together
from naive_ipcv import _chosen, _rebuilt, config
from prompts import GREEDY, logits
from test_ipcv_passes import waits
from tolerances import assert_equal, assert_rounds_alike, exact
from torch.utils.flop_counter import FlopCounterMode
from tower_laws import check_nesting, check_threads

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN, IPCV, FastV, ToMeTower
from ppe_npu.models.loss import Distillation, uncompressed
from ppe_npu.models.pvc.install import add_pvc
from ppe_npu.models.tile_blocks import TileBlock

pytestmark = [pytest.mark.half, supported]

METHOD = IPCV(keep=0.35, prune_block=2, stabilized_blocks=3, neighbors=4)
SETTINGS = {
    "usual": METHOD,
    "none stabilized": IPCV(keep=0.5, prune_block=3, stabilized_blocks=0, neighbors=1),
    "all stabilized": IPCV(keep=0.3, prune_block=1, stabilized_blocks=9),
    "few stay": IPCV(keep=0.04, prune_block=4, stabilized_blocks=2),
    "each tile": IPCV(prune_block=2, stabilized_blocks=2, per_image=True),
}
DEPTH, PATCHES = 8, 16  # blocks, and patches of a tile


def tiny(**vision):
    own = EVERY["internvl"].config
    vision = {**own["vision_config"], "num_hidden_layers": DEPTH, "layer_scale_init_value": 0.8, **vision}
    return replace(EVERY["internvl"], config={**own, "vision_config": vision})


@pytest.fixture
def model():
    return tiny().model()


def sample(model, parts=(2, "picture", 3, "picture", 1), seed=1):
    """One prompt whose first picture has three tiles and whose second has one."""
    return tiny().sample(model, list(parts), seed)


def tower(model, inputs, **options):
    return model.model.vision_tower(inputs["pixel_values"].to(model.dtype), **options).last_hidden_state


def naive(model, pixels, method, pools):
    """[tiles, rows, C] output of the tower by definition. pools: the number of each tile's pool of patches."""
    encoder = model.model.vision_tower.encoder
    state = model.model.vision_tower.embeddings(pixels.to(model.dtype))
    shape, state = state.shape[:2], state.flatten(0, 1)
    tile, place = torch.arange(len(state)) // shape[1], torch.arange(len(state)) % shape[1]
    rows = [torch.nonzero((torch.tensor(pools)[tile] == pool) & (place > 0)).flatten() for pool in sorted({*pools})]
    at, before, start, kept, leaving = torch.cat(rows), None, None, None, []
    for number, layer in enumerate(encoder.layer):
        if number == method.prune_block:
            stayed, away = _chosen(before[at], state[at], method, [len(own) for own in rows])
            leaving = [(at[left], at[near]) for left, near in away]
            kept, start = torch.cat([torch.nonzero(place == 0).flatten(), at[stayed]]).sort().values, state
        before = state
        if number < method.prune_block:
            state = layer(state.unflatten(0, shape)).flatten(0, 1)
            continue
        asked = kept if number >= method.prune_block + method.stabilized_blocks else torch.arange(len(state))
        own, normed = layer.attention, layer.layernorm_before(state)
        query, key, value = own.q_norm(own.q_proj(normed)), own.k_norm(own.k_proj(normed)), own.v_proj(normed)
        query, key, value = (part.unflatten(1, (own.num_heads, -1)) for part in (query[kept], key[asked], value[asked]))
        apart = tile[kept][:, None] != tile[asked][None]
        scores = torch.einsum("shd,thd->hst", query, key) * own.scale
        heard = torch.einsum("hst,thd->shd", scores.masked_fill(apart, -torch.inf).softmax(-1), value).flatten(1)
        middle = state[kept] + layer.lambda_1 * own.projection_layer(heard)
        made = middle + layer.lambda_2 * layer.mlp(layer.layernorm_after(middle))
        state = _rebuilt(start, made, kept, leaving)
    return model.model.vision_tower.layernorm(state.unflatten(0, shape))


@pytest.mark.parametrize("norms", [{}, {"use_qk_norm": True, "norm_type": "rms_norm"}], ids=["plain", "normed"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_towers_output_is_that_of_the_definition(name, norms):
    model, method = tiny(**norms).model(), SETTINGS[name]
    inputs = sample(model)
    pools = [0, 1, 2, 3] if method.per_image else [0] * 4
    with torch.no_grad():
        oracle = lambda: naive(model, inputs["pixel_values"], method, pools)  # noqa: E731
        plain, true = oracle(), exact(model, oracle)
        assert_rounds_alike(tower(compress(model, config(method)), inputs), plain, true, layers=DEPTH)


@pytest.mark.parametrize("mixed", [False, True], ids=["fp32", "autocast"])
def test_a_block_on_all_rows_is_the_block_as_it_is(mixed):
    """Also with autocast, which leaves the norms of heads in fp32."""
    model = tiny(use_qk_norm=True, norm_type="rms_norm").model()
    compress(model, config())
    block = TileBlock(model.model.vision_tower.encoder.layer[0], (2, PATCHES + 1))
    rows, places = torch.randn(34, 16, generator=torch.Generator().manual_seed(0)), torch.arange(34)

    def ran(work):
        with torch.no_grad():
            return work(rows.to(model.dtype))

    given = places, None, block.segments()
    true = exact(model, lambda: ran(block.whole))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        plain = ran(block.whole)
        found = ran(lambda own: block.alone(own, places, block.segments()))
        again = ran(lambda own: block.fed(block.attended(own, *given)))
    for part in (found, again):
        assert_rounds_alike(part, plain, true, layers=1)


@pytest.mark.parametrize("kind", ["eager", "shown"])
def test_it_does_not_hang_on_how_the_tower_attends_or_on_who_looks(model, kind):
    inputs = sample(model)
    with torch.no_grad():
        oracle = lambda: naive(model, inputs["pixel_values"], METHOD, [0] * 4)  # noqa: E731
        plain, true = oracle(), exact(model, oracle)
        compress(model, config())
        if kind == "eager":
            model.model.vision_tower.set_attn_implementation("eager")
        found = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=kind == "shown")
    assert_rounds_alike(found.last_hidden_state, plain, true, layers=DEPTH)
    if kind == "shown":
        assert {tuple(state.shape) for state in found.hidden_states} == {(4, PATCHES + 1, 16)}


def test_tiles_may_be_of_another_size_than_the_configs(model):
    pixels = torch.randn(3, 3, 24, 20, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        oracle = lambda: naive(model, pixels, METHOD, [0] * 3)  # noqa: E731
        plain, true = oracle(), exact(model, oracle)
        assert plain.shape[:2] == (3, 31)
        assert_rounds_alike(tower(compress(model, config()), {"pixel_values": pixels}), plain, true, layers=DEPTH)


def test_passes_nest_and_run_in_threads(model):
    """A pass is interrupted by another one, and by one through the uncompressed tower."""
    runs = [functools.partial(tower, model, own) for own in (sample(model), sample(model, (1, "picture", 4), seed=3))]
    compress(model, config())

    def others():
        with uncompressed(model):
            as_it_is = runs[1]()
        return [runs[1](), as_it_is]

    for module in (model.model.vision_tower.embeddings, model.model.vision_tower.encoder.layer[4].mlp):
        check_nesting(module, lambda: [runs[0]()], others)
    check_threads(*runs)


def test_a_teacher_has_the_tower_as_it_is(model):
    """Patches leave only in the student, so at weight 1 the loss is the distance from a dense teacher."""
    inputs = sample(model)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    wishes = {"labels": labels, "skip_logits": True, "distill": Distillation(1.0)}
    none = compress(model, config(IPCV(keep=1.0)))(**inputs, **wishes).loss
    compress(model, CompressionConfig(steps=[METHOD, DPCKNN(0.5)], positions="keep_one", k=1))
    (both := model(**inputs, **wishes).loss).backward()
    assert both > 100 * none.abs()


def test_features_of_an_earlier_block_are_rebuilt_there(model):
    inputs, short = sample(model), tiny(num_hidden_layers=DEPTH - 2).model()
    own = {name: value for name, value in model.state_dict().items() if name in short.state_dict()}
    short.load_state_dict(own)
    with torch.no_grad():
        run = lambda: short.model.get_image_features(inputs["pixel_values"]).pooler_output  # noqa: E731
        compress(short, config())
        plain, true = run(), exact(short, run)
        compress(model, config())
        found = model.model.get_image_features(inputs["pixel_values"], vision_feature_layer=DEPTH - 2).pooler_output
    assert_rounds_alike(found, plain, true, layers=DEPTH)


@pytest.mark.parametrize(
    ("method", "frames", "pools"),
    [
        (METHOD, None, [0, 0, 0, 0, 1, 1, 1]),
        (replace(METHOD, per_image=True), None, [0, 0, 0, 1, 2, 2, 2]),
        (METHOD, [1, 1, 1], [0, 0, 0, 0, 1, 1, 1]),
        (METHOD, [2, 1], [0, 0, 0, 0, 1, 1, 1]),  # the first prompt's two runs are the frames of a video
        (METHOD, [1, 2, 1], [0, 0, 0, 1, 1, 1, 1, 0]),  # a video of two frames with four tiles, between two pictures
    ],
)
def test_patches_compete_within_a_prompts_images_and_its_videos_or_each_image(model, method, frames, pools):
    inputs = [sample(model), sample(model, (1, "picture", 2), seed=3)]
    if len(pools) == 8:
        ids = torch.cat([inputs[0]["input_ids"], sample(model, (1, "picture", 2, "picture"), seed=5)["input_ids"]], 1)
        tiles = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(6))
        inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": tiles}]
    given = together(inputs)
    with torch.no_grad():
        oracle = lambda: naive(model, given["pixel_values"], method, pools)  # noqa: E731
        plain, true = oracle(), exact(model, oracle)
    seen = []
    compress(model, config(method))
    hook = model.model.vision_tower.register_forward_hook(lambda _m, _a, out: seen.append(out.last_hidden_state))
    logits(model, given, **({} if frames is None else {"num_frames": frames}))
    hook.remove()
    assert_rounds_alike(seen, [plain], [true], layers=DEPTH)


def test_a_prompt_gives_what_it_gives_alone(model):
    compress(model, config())
    alone = [sample(model), sample(model, (5,), seed=2), sample(model, (1, "picture", 4), seed=3)]
    for row, inputs in zip(logits(model, together(alone)), alone):
        found = logits(model, inputs)[0]
        true = exact(model, lambda one=inputs: logits(model, one))[0]
        assert_rounds_alike(row[-len(found) :], found, true, layers=DEPTH + 3)


def test_it_leaves_nothing_behind_and_survives_exceptions_and_copies(model):
    inputs, inner = sample(model), model.model
    modules = [inner.vision_tower, inner.vision_tower.encoder, *inner.vision_tower.encoder.layer]
    before, plain = [set(vars(module)) for module in modules], logits(model, inputs)
    compress(model, config())
    expected = logits(model, inputs)
    assert not torch.equal(expected, plain)
    told = model.compression.report.in_tower.patches
    twin, shadow = copy.deepcopy(model), copy.copy(model)
    restore(shadow)
    assert_equal(logits(model, inputs), expected)
    hook = inner.vision_tower.encoder.layer[4].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model, inputs)
    hook.remove()
    assert_equal(logits(model, inputs), expected)
    with uncompressed(model):
        assert_equal(logits(model, inputs), plain)
    restore(model)
    assert [set(vars(module)) for module in modules] == before
    assert_equal(logits(twin, inputs), expected)
    assert twin.compression.report.in_tower.patches == told
    assert_equal(logits(model, inputs), plain)
    assert_equal(logits(compress(model, config(IPCV(keep=1.0))), inputs), plain)


# -- training --------------------------------------------------------------------------------------------------------


def gradients(model, features):
    model.zero_grad()
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)).sum().backward()
    return {name: p.grad.clone() for name, p in model.model.vision_tower.named_parameters() if p.grad is not None}


def test_gradients_flow_through_the_rebuilt_tokens(model):
    inputs = sample(model)
    oracle = lambda: gradients(model, naive(model, inputs["pixel_values"], METHOD, [0] * 4))  # noqa: E731
    plain, true = oracle(), exact(model, oracle)
    compress(model, config())
    assert_rounds_alike(gradients(model, tower(model, inputs)), plain, true, layers=DEPTH)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model, reentrant):
    inputs = sample(model)
    compress(model, config(METHOD, DPCKNN(0.5))).train()

    def trained():
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = trained()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.model.vision_tower.encoder.layer[0].gradient_checkpointing
    again = trained()
    assert again.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_equal(again[name], gradient, name)


def test_adapters_on_the_tower_train_in_every_layer(model):
    peft = pytest.importorskip("peft")
    inputs, modules = sample(model), r".*vision_tower.*\.(q_proj|v_proj|projection_layer|fc2)"
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=modules))
    compress(model, config(METHOD, DPCKNN(0.5))).train()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    learnt = {name for name, p in model.named_parameters() if "lora_B" in name and p.grad is not None and p.grad.any()}
    assert len(learnt) == 4 * DEPTH


def test_text_alone_trains_every_parameter_of_the_tower(model):
    inputs = sample(model, (5,))
    compress(model, config()).train()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    parameters = model.model.vision_tower.encoder.named_parameters()
    assert not [name for name, p in parameters if p.grad is None or p.grad.any()]


# -- with other steps, and reports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[DPCKNN(0.5)], [FastV(0.5, layer=1)]], ids=["ppe", "fastv"])
def test_other_steps_follow_it(model, steps):
    inputs = together([sample(model), sample(model, (5,), seed=2)])
    compress(model, config(METHOD, *steps, positions="ppe", k=4))
    out = logits(model, inputs)
    assert torch.isfinite(out).all()
    assert model.compression.report.retention < 1
    ids = model.generate(**inputs, max_new_tokens=3, **GREEDY)
    first = out[:, -1].clone()
    first[:, GREEDY["suppress_tokens"]] = -torch.inf
    assert ids[:, inputs["input_ids"].shape[1]].tolist() == first.argmax(-1).tolist()


def test_the_report_tells_the_towers_work_beside_the_decoders(model):
    inputs, counter = sample(model), FlopCounterMode(display=False)
    compress(model, config())
    with counter:
        logits(model, inputs)
    told, kept = model.compression.report.in_tower, int(4 * PATCHES * 0.35)
    assert told.patches == [4 * PATCHES + 4] * 2 + [kept + 4] * 6
    layers = {f"InternVLForConditionalGeneration.model.vision_tower.encoder.layer.{number}" for number in range(DEPTH)}
    linear = sum(sum(kinds.values()) for name, kinds in counter.flop_counts.items() if name in layers)
    nearest = 2 * (4 * PATCHES - kept) * kept * 16  # FLOPs of the product that finds neighbours
    assert told.flops + nearest == linear + 4 * 16 * sum(block.ran[2] for block in told.blocks.values())
    assert told.flops < told.dense_flops
    assert told.decoder
    assert model.compression.report.to_dict()["tower"]["milliseconds"] > 0


@pytest.mark.parametrize("call", [tower, logits], ids=["tower", "model"])
def test_the_host_waits_once_more_than_for_the_tower_as_it_is(model, call, monkeypatch):
    inputs = together([sample(model), sample(model, (1, "picture", 2), seed=3)])
    call(compress(model, CompressionConfig.preset("dense")), inputs)
    plain = waits(call, model, inputs, monkeypatch)
    call(compress(model, config()), inputs)
    assert waits(call, model, inputs, monkeypatch) <= plain + 1


def test_what_cannot_be_is_refused_by_name(model):
    with pytest.raises(InputError, match=r"ipcv released=true: .* tiles with a class token each; leave released out"):
        compress(model, config(replace(METHOD, released=True)))
    for own, step, why in ((model, ToMeTower(0.5), "a step inside"), (add_pvc(copy.deepcopy(model)), METHOD, "PVC's")):
        with pytest.raises(InputError, match=f"{step.name}: {why}"):
            compress(own, config(step))
    model.model.vision_tower.encoder.layer[1] = torch.nn.Identity()
    with pytest.raises(InputError, match=r"the vision tower has a block of class 'Identity': .*load a model"):
        compress(model, config())
