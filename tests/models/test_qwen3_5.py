"""Qwen3.5, which has layers of linear attention between layers of full attention."""

import copy

import pytest
import torch
from prompts import GREEDY, check_alone, check_cache, kept_logits, logits, with_types
from support import PAD_ID, Prompt, batch, random_model
from test_packing import text_labels
from tolerances import assert_equal, assert_rounds_alike, exact, loss_near

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.compat import cache_argument, output_cache
from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN, get
from ppe_npu.models.fused import fuse
from ppe_npu.models.known import is_gated

MODEL = random_model(family="qwen3_5")
PROMPTS = [
    Prompt([2, "start", ("image", (1, 4, 5)), 3, ("frames", (3, 3, 4)), 2], seed=1),
    Prompt([5], seed=2),
    Prompt([1, ("frames", (2, 2, 3)), 2, "start", ("image", (1, 3, 3)), 1, "start", ("image", (1, 1, 1)), 4], seed=3),
]
STEPS = {
    "before": [DPCKNN(0.45)],
    "on entry of linear layers": [DPCKNN(0.6), DPCKNN(0.5, layer=2), DPCKNN(0.5, layer=3)],
    "on entry of attention": [DPCKNN(0.6, layer=1), DPCKNN(0.5, layer=4)],
    "by the last token": [get("fastv", ratio=0.5, layer=2), DPCKNN(0.5, layer=3)],
    "late": [get("apet"), get("uniform", ratio=0.7, layer=2)],
}

SLOW = ("before", "on entry of attention")
QUICK = [("on entry of attention", "ppe"), ("on entry of linear layers", "renumber")]


def config_of(name, positions="ppe", k=4):
    return CompressionConfig(steps=STEPS[name], positions=positions, k=k if positions == "ppe" else 1)


def inputs_of(*prompts, **kwargs):
    return {name: value for name, value in batch(*prompts, **kwargs).items() if name != "second_per_grid_ts"}


@pytest.mark.parametrize("side", ["left", "right"])
def test_dense_is_the_untouched_model_padded_or_not(side):
    model, inputs = restore(MODEL), with_types(inputs_of(*PROMPTS, side=side))
    real = inputs["attention_mask"].bool()
    plain = logits(model, inputs)[real]
    true = exact(model, lambda: logits(model, inputs)[real])
    found = logits(compress(model, CompressionConfig.preset("dense")), inputs)
    assert_rounds_alike(found[real], plain, true)
    restore(model)
    assert_equal(logits(model, inputs)[real], plain)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in STEPS])
def test_a_prompts_result_depends_on_the_prompt_alone(name):
    fused = fuse(random_model(family="qwen3_5"))
    model, fused = (compress(some, config_of(name)) for some in (MODEL, fused))
    check_alone(model, fused, PROMPTS, kept_logits, pad_to=80)


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        pytest.param(name, positions, marks=() if (name, positions) in QUICK else pytest.mark.slow)
        for name in ("before", "on entry of linear layers", "on entry of attention", "late")
        for positions in ("ppe", "keep_one", "renumber")
    ],
)
def test_decoding_with_the_cache_gives_the_logits_of_decoding_without(name, positions):
    model, inputs = compress(MODEL, config_of(name, positions)), inputs_of(*PROMPTS)
    model.generate(**inputs, max_new_tokens=2, **GREEDY)
    assert model.compression.report.kv_bytes > 0
    check_cache(model, inputs)


@pytest.mark.parametrize("name", ["on entry of linear layers", "on entry of attention"])
def test_a_second_turn_goes_on_where_the_first_ended(name):
    model, settings = compress(MODEL, config_of(name)), {"max_new_tokens": 3, **GREEDY}
    inputs = inputs_of(PROMPTS[0])
    first = model.generate(**inputs, **settings, return_dict_in_generate=True)
    more = torch.cat([first.sequences, torch.tensor([[11, 12, 13, 14]])], dim=1)
    rest = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    second = model.generate(**rest, past_key_values=first.past_key_values, **settings)
    assert torch.equal(second, model.generate(**{**inputs, **rest}, **settings))


@pytest.mark.parametrize("name", ["on entry of linear layers", "on entry of attention"])
def test_tokens_go_on_together_as_one_by_one(name, monkeypatch):
    """Linear layers that forget their states get tokens one by one. The last sample's turn is padded on the left."""
    model, inputs = compress(MODEL, config_of(name)), with_types(inputs_of(*PROMPTS))
    turn = torch.arange(11, 23).view(3, 4)
    mask = torch.cat([inputs["attention_mask"], (turn != 19) & (turn != 20)], dim=1)

    def second():
        with torch.no_grad():
            cache = output_cache(model(**inputs, use_cache=True))
            out = model(input_ids=turn, attention_mask=mask, **cache_argument(type(model).forward, cache))
        return out.logits[mask[:, -4:].bool()]

    together, true = second(), exact(model, second)
    monkeypatch.setattr("ppe_npu.compat._forgets_states", lambda: True)
    assert_rounds_alike(second(), together, true)


def test_beams_of_a_batch_are_those_of_its_samples():
    model, settings = compress(MODEL, config_of("before")), {"max_new_tokens": 4, **GREEDY, "num_beams": 2}
    prompts = [PROMPTS[0], PROMPTS[2]]
    together = model.generate(**inputs_of(*prompts), **settings)[:, -4:]
    alone = [model.generate(**inputs_of(prompt), **settings)[0, -4:] for prompt in prompts]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("name", ["before", "late"])
def test_the_loss_is_one_however_it_is_asked_for(name):
    model = compress(fuse(random_model(family="qwen3_5")), config_of(name)).train()
    inputs = inputs_of(*PROMPTS, side="right")
    labels = text_labels(inputs)
    out = model(**inputs, labels=labels)
    for row, (own, arranged) in enumerate(zip(labels, out.labels)):
        assert arranged[arranged != -100].tolist() == own[own != -100].tolist(), row
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), out.labels[:, 1:].flatten())
    for wishes in ({}, {"skip_logits": True}):
        assert model(**inputs, labels=labels, **wishes).loss.item() == loss_near(expected.item())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_survive_checkpointing(reentrant):
    model = compress(random_model(family="qwen3_5"), config_of("on entry of linear layers")).train()
    inputs = inputs_of(*PROMPTS)
    labels = text_labels(inputs)

    def gradients():
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, true = gradients(), exact(model, gradients)
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if "linear_attn" in name)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    assert_rounds_alike(gradients(), expected, true)


def test_what_is_looked_at_is_what_the_layer_makes_of_it():
    """The row comes from attention with gated heads, in which only a part of the channels is rotated."""
    model, prompt = copy.deepcopy(MODEL), Prompt([2, ("image", (1, 4, 5)), 3], seed=1)
    model.set_attn_implementation("eager")
    compress(model, CompressionConfig.preset("dense"))
    with torch.no_grad():
        row = model(**inputs_of(prompt), output_attentions=True).attentions[0][0, :, -1, 2:22].mean(0)
    for ratio in (0.2, 0.5):
        compress(model, CompressionConfig(steps=[get("fastv", ratio=ratio, layer=2)], positions="keep_one"))
        model.compression.keep_groups = True
        logits(model, inputs_of(prompt))
        (groups,) = model.compression.trace.visuals()[0].stages
        kept = row.sort(descending=True, stable=True).indices[: len(groups.representatives)]
        assert groups.representatives.tolist() == kept.sort().values.tolist()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in STEPS])
def test_a_packed_row_is_its_samples(name):
    """Its loss and gradients are those of the padded batch: no state continues from one sample to the next."""
    model, inputs = compress(MODEL, config_of(name)), inputs_of(*PROMPTS, side="right")
    labels = text_labels(inputs)

    def learned(packed):
        model.zero_grad()
        out = model(**inputs, labels=labels, packed=packed)
        out.loss.backward()
        return {
            "loss": out.loss.detach(),
            **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        }

    assert_rounds_alike(learned(True), learned(False), exact(model, lambda: learned(False)))
    with torch.no_grad():
        padded, row = model(**inputs, labels=labels), model(**inputs, labels=labels, packed=True)
    assert row.logits.shape[0] == 1
    assert row.logits.shape[1] < padded.logits.shape[:2].numel()


def test_what_linear_attention_cannot_take_is_refused():
    model, inputs = compress(fuse(random_model(family="qwen3_5")), config_of("before")), inputs_of(PROMPTS[1])
    assert is_gated(model.model.language_model.layers[1].self_attn)
    whole = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    with pytest.raises(InputError, match="attention_mask is 4D: linear attention supports only padding"):
        model(**{**inputs, "attention_mask": whole})
    with pytest.raises(InputError, match=r"fastv with layer=1 looks at attention in layer 0.*one of the layers \[2\]"):
        compress(model, CompressionConfig(steps=[get("fastv", ratio=0.5, layer=1)], positions="keep_one"))
    assert PAD_ID not in inputs["input_ids"]
