"""compress() on Qwen2.5-VL: it equals dense if nothing is merged, treats each prompt alone, and is undone exactly."""

import copy
from types import SimpleNamespace

import pytest
import torch
from prompts import (
    APART,
    MIXED,
    PLAN_INPUTS,
    PPE,
    PRESET_CASES,
    PRESETS,
    check_labels,
    check_slope,
    kept_logits,
    logits,
    with_types,
)
from support import IMAGE_ID, Prompt, batch, random_model
from tolerances import assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.models import is_compressed

pytestmark = pytest.mark.half


def each_alone(model):
    """Logits of the mixed prompts one by one, in the model's dtype and in fp64."""

    def run():
        return [kept_logits(model, prompt)[0] for prompt in MIXED]

    return run(), exact(model, run)


@pytest.mark.parametrize("name", ["dense", "keep_one", "ppe"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_ratio_one_is_the_dense_model(model, name, side):
    inputs = with_types(batch(*APART, side=side))
    real = inputs["attention_mask"].bool()
    expected = logits(model, inputs)[real]
    true = exact(model, lambda: logits(model, inputs)[real])
    overrides = {} if name == "dense" else {"ratio": 1.0, **({"k": 4} if name == "ppe" else {})}
    compress(model, CompressionConfig.preset(name, **overrides))
    assert_rounds_alike(logits(model, inputs)[real], expected, true)


@pytest.mark.parametrize("config", PRESET_CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_batch_mates_and_their_order_change_nothing(model, config, side):
    compress(model, config)
    alone, true = each_alone(model)
    for order in ([0, 1, 2], [2, 0, 1]):
        together = kept_logits(model, *(MIXED[i] for i in order), side=side, pad_to=80)
        assert_rounds_alike([together[order.index(i)] for i in range(3)], alone, true)


def test_every_kept_position_belongs_to_a_member_of_the_group(model):
    """Rows of merged tokens are (t, h, w) triples of the span, and text keeps the dense numbering."""
    seen = []
    compress(model, PPE)
    model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, *kwargs.values())[1]), with_kwargs=True
    )
    logits(model, batch(Prompt([2, ("image", (1, 4, 5)), 3])))
    rows = seen[0][:, 0].view(3, 4, -1)  # axis, k, place
    assert rows.shape[-1] == 2 + 9 + 3
    triples = {tuple(rows[:, j, p].tolist()) for j in range(4) for p in range(2, 11)}
    assert triples <= {(2, 2 + h, 2 + w) for h in range(4) for w in range(5)}
    assert rows[:, :, [0, 1, 11, 12, 13]].unique(dim=1).squeeze(1).tolist() == [[0, 1, 7, 8, 9]] * 3


def test_labels_follow_their_tokens_and_the_loss_is_theirs(model):
    check_labels(compress(model, PPE))


def test_labels_on_all_text_give_gradients_of_an_ordinary_size(model):
    """With left padding, a label on the first token has to be predicted from padding, in transformers as well."""
    inputs = batch(*MIXED)
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    for config in (PPE, PRESETS["cascade"]):
        compress(model, config)
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        assert max(p.grad.abs().max() for p in model.parameters()) < 10


def test_gradients_of_the_merge_agree_with_finite_differences_in_fp64(model):
    """From features and text embeddings to the compressed prompt there are only averages and gathers, so this is
    exact."""
    compression = compress(model, PPE).compression
    inputs = batch(*MIXED)
    plan = compression.plan(*(inputs.get(name) for name in PLAN_INPUTS))
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(62, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    text = torch.randn(len(plan.stages[0].text), 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, t: compression.prefill(plan, t, f)[1], (features, text), fast_mode=True)


def test_gradients_of_the_model_agree_with_finite_differences(model):
    """This covers the whole model, in which transformers' norms and vision rope stay in fp32 even if it is fp64."""
    compress(model.double(), PPE)
    inputs = batch(*MIXED[:1])
    labels = torch.where(inputs["input_ids"] < IMAGE_ID, inputs["input_ids"], -100)
    model(**inputs, labels=labels).loss.backward()
    generator = torch.Generator().manual_seed(0)
    for name in ("visual.patch_embed.proj", "visual.merger.mlp.2", "language_model.layers.1.self_attn.q_proj"):
        weight = model.get_parameter(f"model.{name}.weight")
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        slope = (weight.grad * direction).sum().item()
        check_slope(model, inputs, labels, weight, direction, slope)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(model, reentrant):
    compress(model, PPE).train()
    inputs = batch(*MIXED)
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)

    def gradients():
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, true = gradients(), exact(model, gradients)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    got = gradients()
    assert got.keys() == dict(model.named_parameters()).keys()
    assert_rounds_alike(got, expected, true)


def test_bf16_stays_near_fp32_on_the_same_groups(model):
    """Weights are rounded to bf16. They are compared at ratio 1, because other groups would change rows completely."""
    inputs = batch(*MIXED)
    compress(model, CompressionConfig.preset("ppe", ratio=1.0, k=4))
    model.bfloat16()
    low = logits(model, inputs).float()
    high = logits(model.float(), inputs)
    assert torch.nn.functional.cosine_similarity(low[:, -1], high[:, -1]).min() > 0.99
    compress(model.bfloat16(), PPE)
    out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert out.shape[0] == 3


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation):
    expected, true = each_alone(compress(random_model(), PPE))
    model = random_model()
    model.set_attn_implementation(implementation)
    assert_rounds_alike(kept_logits(compress(model, PPE), *MIXED), expected, true)


@pytest.mark.parametrize("config", PRESET_CASES)
def test_a_4d_mask_and_explicit_positions_pack_questions_that_share_an_image(model, config):
    """prefix + question A + question B, where B is blind to A and numbered like A, gives the logits of two prompts."""
    compress(model, config)
    prefix = Prompt([2, ("image", (1, 4, 4)), 1], seed=5)
    a, b = [20, 21, 22], [30, 31]

    def alone(question):
        prompt = copy.deepcopy(prefix)
        prompt.ids += question
        return kept_logits(model, prompt)[0][-len(question) :]

    single, true = [alone(a), alone(b)], exact(model, lambda: [alone(a), alone(b)])
    packed = copy.deepcopy(prefix)
    packed.ids += a + b
    inputs = batch(packed)
    n, total = len(prefix.ids), len(packed.ids)
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    mask[n + 3 :, n : n + 3] = False
    start = 2 + 4 + 1
    positions = torch.zeros(3, 1, total, dtype=torch.long)
    positions[:, 0, :2] = torch.arange(2)
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(4)).T + 2
    positions[:, 0, 2:18] = grid
    positions[:, 0, 18] = start - 1
    positions[:, 0, n:] = torch.tensor([*range(start, start + 3), *range(start, start + 2)])
    out = logits(model, inputs | {"attention_mask": mask[None, None], "position_ids": positions})[0]
    assert_rounds_alike([out[-5:-2], out[-2:]], single, true)


def test_autocast_does_not_reach_the_clustering(model):
    """In mixed-precision training, fp32 features stay fp32 inside, so groups are those of fp32."""
    compression = compress(model, PPE).compression
    plan = compression.plan(*(batch(*MIXED).get(name) for name in PLAN_INPUTS))
    features = torch.randn(62, 64, generator=torch.Generator().manual_seed(1))
    text = torch.zeros(len(plan.stages[0].text), 64)
    run, embeds = compression.prefill(plan, text, features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other, got = compression.prefill(plan, text, features)
    assert torch.equal(got, embeds)
    assert torch.equal(other.rows[0], run.rows[0])


def test_two_runs_are_bit_identical(model):
    compress(model, PPE)
    inputs = batch(*MIXED)
    assert torch.equal(logits(model, inputs), logits(model, inputs))


def test_restore_gives_the_model_back_bit_for_bit(model):
    inputs = with_types(batch(*APART))
    before, config = logits(model, inputs), copy.deepcopy(model.config.to_dict())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    compress(compress(model, PRESETS["chatunivi"]), PPE)
    assert is_compressed(model)
    assert set(model.state_dict()) == set(weights)
    logits(model, inputs)
    assert restore(model) is model
    assert not is_compressed(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.config.to_dict() == config
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model, inputs), before)
    assert torch.equal(logits(restore(model), inputs), before)  # nothing to undo


def test_a_compressed_model_leaves_other_models_of_its_class_alone(model):
    other, inputs = random_model(), with_types(batch(*APART))
    before = logits(other, inputs)
    compress(model, PPE)
    logits(model, inputs)
    assert torch.equal(logits(other, inputs), before)


def test_a_compressed_model_is_not_pickled(model, tmp_path):
    compress(model, PPE)
    with pytest.raises(TypeError, match=r"a compressed model cannot be pickled, because .* save_pretrained"):
        torch.save(model, tmp_path / "model.pt")
    torch.save(restore(model), tmp_path / "model.pt")


def test_a_mask_in_bf16_is_a_mask(model):
    compress(model, PPE)
    inputs = batch(*MIXED)
    expected = logits(model, inputs)
    assert torch.equal(logits(model, inputs | {"attention_mask": inputs["attention_mask"].bfloat16()}), expected)


def test_a_copy_of_a_compressed_model_is_independent(model):
    compress(model, PPE)
    twin = copy.deepcopy(model)
    restore(model)
    assert logits(twin, batch(MIXED[0])).shape[1] < len(MIXED[0].ids) == logits(model, batch(MIXED[0])).shape[1]
    assert twin.model.language_model.rotary_emb is not model.model.language_model.rotary_emb


def test_a_checkpoint_of_a_compressed_model_loads_in_plain_transformers(model, tmp_path):
    inputs = with_types(batch(*APART))
    expected = logits(model, inputs)
    compress(model, PPE).save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path), inputs), expected)


def test_the_report_counts_tokens_by_span(model):
    compress(model, PPE)
    assert model.compression.report is None
    logits(model, batch(*MIXED))
    report = model.compression.report
    assert [(s.sample, s.modality, s.before, s.after) for s in report.spans] == [
        (0, "image", 20, 9),
        (0, "video", 32, 16),
        (2, "image", 1, 1),
        (2, "image", 9, 5),
    ]
    assert (report.tokens_before, report.tokens_after) == (62, 31)
    assert report.layers == (31, 31, 31)
    assert report.retention == 0.5
    assert (report.prompt_tokens_before, report.prompt_tokens_after) == (79, 48)
    assert report.milliseconds > 0
    assert set(report.to_dict()) >= {"tokens_before", "tokens_after", "retention", "milliseconds", "spans"}


def test_explicit_positions_reach_text_and_images_axis_by_axis(model):
    """At ratio 1.0 the given (t, h, w) are used as in plain transformers, even if the axes differ on text."""
    inputs = batch(APART[0])
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, 40, (3, *inputs["input_ids"].shape), generator=generator)
    expected = logits(model, inputs, position_ids=positions)
    true = exact(model, lambda: logits(model, inputs, position_ids=positions))
    compress(model, CompressionConfig.preset("ppe", ratio=1.0, k=4))
    assert_rounds_alike(logits(model, inputs, position_ids=positions), expected, true)


def test_inputs_embeds_beside_input_ids(model):
    compress(model, PPE)
    inputs = batch(MIXED[0])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(logits(model, inputs, inputs_embeds=embeds), logits(model, inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, "sample 0 has more image tokens than image_grid_thw describes"),
        ({"image_grid_thw": None}, "pixel_values are given without image_grid_thw"),
        (
            {"image_grid_thw": torch.tensor([1, 4, 4])},
            r"image_grid_thw must be a tensor of whole numbers \[n, 3\], not",
        ),
        ({"image_grid_thw": [[1, 4, 4]]}, "image_grid_thw must be a tensor .* not list"),
        ({"image_grid_thw": torch.tensor([[1.0, 4, 4]])}, "image_grid_thw must be a tensor of whole numbers"),
        ({"pixel_values": torch.zeros(16)}, r"pixel_values must be \[patches, values of a patch\], not \[16\]"),
        ({"attention_mask": torch.ones(2, 1, 7, 7, dtype=torch.bool)}, r"attention_mask is torch.bool \[2, 1, 7, 7\]"),
        ({"attention_mask": torch.ones(1, 1, 7, 7, dtype=torch.long)}, "attention_mask is torch.int64 .* must be bool"),
        ({"pixel_values": torch.zeros(12, 96)}, "pixel_values hold 12 patches, but image_grid_thw describes 16"),
        ({"labels": torch.zeros(1, 3, dtype=torch.long)}, r"labels have shape \[1, 3\] but input_ids"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask is \[1, 3\]: give \[1, 7\], one entry per"),
        ({"position_ids": torch.zeros(1, 3, dtype=torch.long)}, r"position_ids have shape \[1, 3\]: give \[3, 1,"),
        (
            {"position_ids": torch.zeros(5, 1, 7, dtype=torch.long)},
            r"position_ids have shape \[5, 1, 7\]: give \[3, 1, 7\], \[1, 7\] or",
        ),
        ({"input_ids": None}, "input_ids and inputs_embeds are both missing"),
    ],
)
def test_inputs_that_do_not_fit_are_named_before_anything_is_computed(model, change, message):
    compress(model, PPE)
    model.model.visual.register_forward_pre_hook(lambda *_: pytest.fail("the vision tower ran"))
    with pytest.raises(ValueError, match=message):
        logits(model, batch(Prompt([2, ("image", (1, 2, 2)), 1])) | change)


def test_what_cannot_be_compressed_is_refused_with_what_can(model):
    with pytest.raises(ValueError, match=r"Linear is not supported: use one of Qwen2VL.*Qwen2_5_VL.*Qwen3VL"):
        compress(torch.nn.Linear(2, 2), PPE)
    with pytest.raises(ValueError, match="config is a str: give a CompressionConfig"):
        compress(model, "ppe")
    with pytest.raises(
        ValueError,
        match=r"k=9 exceeds the smallest of this model's rotary sections \(channels: \[8, 12, 12\]\).*from 1 to 8",
    ):
        compress(model, CompressionConfig.preset("ppe", k=9))
    assert not is_compressed(model)


def test_a_wrapped_model_is_found(model):
    wrapper = SimpleNamespace(get_base_model=lambda: model)
    assert compress(wrapper, PPE) is wrapper
    assert is_compressed(model)
    restore(wrapper)
    assert not is_compressed(model)
