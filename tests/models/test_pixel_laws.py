"""The laws of prompts hold for prompts whose pictures lose cells before the vision tower, in all kinds of batches."""

import pytest
import torch
from prompts import GREEDY, check_alone, check_cache, logits
from support import QUICK_FAMILIES, random_model
from test_packing import check_packed, text_labels
from tiles import FUSED, MODELS, STEPS, TOWERS, config_of, inputs_of, kept_rows, painted, prompts_of
from tolerances import assert_rounds_alike, divergence_error, exact, loss_near

from ppe_npu import compress
from ppe_npu.models.loss import Distillation

pytestmark = pytest.mark.half


@pytest.fixture(params=[*QUICK_FAMILIES, "qwen3_5"])
def family(request):
    if request.param not in MODELS:
        pytest.skip("transformers keeps linear attention's states elsewhere")
    return request.param


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def some(request):
    return request.param


@pytest.mark.parametrize("name", STEPS)
def test_a_prompts_result_depends_on_the_prompt_alone(family, name):
    config, prompts = config_of(name), prompts_of(family)
    model, fused = compress(MODELS[family], config), compress(FUSED[family], config)
    expected = check_alone(model, fused, prompts, kept_rows, pad_to=70)
    assert len(expected[0]) < len(prompts[0].ids)


@pytest.mark.parametrize("name", ["alone", "then clusters"])
def test_a_packed_batch_is_its_samples(some, name):
    check_packed(compress(FUSED[some], config_of(name)), prompts_of(some), "right")


@pytest.mark.parametrize("positions", ["ppe", "renumber"])
@pytest.mark.parametrize("name", ["alone", "then clusters"])
def test_decoding_with_the_cache_gives_the_logits_of_decoding_without(some, name, positions):
    model = compress(MODELS[some], config_of(name, positions))
    check_cache(model, inputs_of(some, *prompts_of(some)))


def test_a_second_turn_with_another_picture(some):
    model, settings = compress(MODELS[some], config_of("then clusters")), {"max_new_tokens": 3, **GREEDY}
    first, more = painted([2, ("image", (1, 4, 4)), 3], seed=1), painted([1, ("image", (1, 3, 5)), 2], seed=2)
    start = inputs_of(some, first)
    out = model.generate(**start, **settings, return_dict_in_generate=True)
    ids = torch.cat([out.sequences, torch.tensor([more.ids])], dim=1)
    both = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.cat([*first.pixels["image"], *more.pixels["image"]]),
        "image_grid_thw": torch.tensor([*first.grids["image"], *more.grids["image"]]),
    }  # fmt: skip
    second = model.generate(**both, past_key_values=out.past_key_values, **settings)
    assert torch.equal(second, model.generate(**both, **settings))


def test_beams_of_a_batch_are_those_of_its_samples(some):
    model, settings = compress(MODELS[some], config_of("alone")), {"max_new_tokens": 4, **GREEDY, "num_beams": 2}
    prompts = [prompts_of(some)[0], prompts_of(some)[2]]
    together = model.generate(**inputs_of(some, *prompts), **settings)[:, -4:]
    alone = [model.generate(**inputs_of(some, prompt), **settings)[0, -4:] for prompt in prompts]
    assert torch.equal(together, torch.stack(alone))


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alone", "then late"])
def test_the_loss_is_one_however_it_is_asked_for(some, name):
    model = compress(FUSED[some], config_of(name)).train()
    inputs = inputs_of(some, *prompts_of(some), side="right")
    labels = text_labels(inputs)
    out = model(**inputs, labels=labels)
    for row, (own, arranged) in enumerate(zip(labels, out.labels)):
        assert arranged[arranged != -100].tolist() == own[own != -100].tolist(), row
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), out.labels[:, 1:].flatten())
    for wishes in ({}, {"skip_logits": True}, {"skip_logits": True, "packed": True}, {"packed": True}):
        assert model(**inputs, labels=labels, **wishes).loss.item() == loss_near(expected.item())
    model.eval()


def test_the_teacher_sees_all_cells(some):
    """So the distillation loss is zero if no cell is dropped, and positive otherwise."""
    model = FUSED[some].train()
    inputs = inputs_of(some, *prompts_of(some), side="right")
    wishes = {"labels": text_labels(inputs), "skip_logits": True, "distill": Distillation(1.0)}
    exact_cells = [{"method": "pixelprune"}]  # it drops nothing, because no two noisy cells are equal
    same, less = (compress(model, config_of(steps))(**inputs, **wishes).loss.item() for steps in (exact_cells, "alone"))
    model.eval()
    limit = divergence_error(logits(model, inputs))
    assert abs(same) <= limit < less


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_survive_checkpointing(some, reentrant):
    model = compress(random_model(family=some, tower=TOWERS.get(some)), config_of("then clusters")).train()
    inputs = inputs_of(some, *prompts_of(some))
    labels = text_labels(inputs)

    def gradients():
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, true = gradients(), exact(model, gradients)
    assert any("visual.blocks" in name and gradient.abs().max() > 0 for name, gradient in expected.items())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    assert_rounds_alike(gradients(), expected, true)
