"""Fused operators in a model give the same results, need one attention call for all windows, and come off exactly."""

import pytest
import torch
from prompts import GREEDY, logits, with_types
from support import FAMILIES, Prompt, batch, random_model
from tolerances import assert_rounds_alike, exact
from transformers import DynamicCache, StaticCache

from ppe_npu import CompressionConfig, backends, compress, restore
from ppe_npu.engine.packing import Segments
from ppe_npu.models import vision_language
from ppe_npu.models.fused import fuse, unfuse

pytestmark = pytest.mark.half

INPUTS = batch(Prompt([2, ("image", (1, 3, 5)), 3, ("video", (2, 2, 4)), 1], seed=1), Prompt([3, ("image", (1, 2, 2))]))
IMAGES = batch(Prompt([2, ("image", (1, 3, 5)), 3], seed=1), Prompt([3, ("image", (1, 2, 2)), 1]))


def result(model, inputs=INPUTS):
    compress(model, CompressionConfig.preset("keep_one"))
    out = model(**inputs, labels=inputs["input_ids"].where(inputs["attention_mask"] == 1, -100))
    model.zero_grad()
    out.loss.backward()
    real = out.past_key_values.ppe_state.masks[0]  # the results for padding do not matter
    return out.logits.detach()[real], {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture
def calls(monkeypatch):
    """(op, arguments, options) of every call that goes through dispatch, in order."""
    made, call = [], backends.dispatch.call

    def noted(op, *args, **options):
        made.append((op, args, options))
        return call(op, *args, **options)

    monkeypatch.setattr(backends.dispatch, "call", noted)
    return made


@pytest.mark.parametrize("implementation", ["sdpa", "reference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_stay(family, implementation):
    model = random_model(family=family)
    inputs = IMAGES if family == "qwen3_vl" else INPUTS
    (logits, grads), (true, true_grads) = result(model, inputs), exact(model, lambda: result(model, inputs))
    with backends.dispatch.using(attention=implementation):
        fused_logits, fused_grads = result(fuse(model), inputs)
    assert_rounds_alike(fused_logits, logits, true)
    assert_rounds_alike(fused_grads, grads, true_grads)


def test_every_norm_mlp_and_window_goes_through_the_backends(calls):
    model = fuse(compress(random_model(), CompressionConfig.preset("keep_one")))
    with torch.no_grad():
        model(**INPUTS)
    ops = [op for op, _, _ in calls]
    blocks, layers = 1, 3  # the tower runs once, on images and videos together
    assert ops.count("attention") == blocks + layers
    assert ops.count("rotary") == blocks + layers
    assert ops.count("swiglu") == blocks + layers
    assert ops.count("rms_norm") == 2 * blocks + 1 + 2 * layers + 1
    assert ops.count("group_mean") == ops.count("dpc_knn") == 3  # frames of 4, 8 and 15 tokens: three buckets


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_stays(family, cache):
    """This covers prefill with padding, decoding steps, a cascade, and a cache of fixed length."""
    model = compress(random_model(family=family), CompressionConfig.preset("ppe", k=4, layers=[1]))
    settings = {"max_new_tokens": 4, **GREEDY, "cache_implementation": cache}
    expected = model.generate(**IMAGES, **settings)
    assert torch.equal(fuse(model).generate(**IMAGES, **settings), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layers", [[], [1]])
def test_a_padded_prompt_needs_no_mask(calls, side, layers):
    """No fused kernel takes a mask, so samples become segments, in each stage of its own lengths. Decoding uses a mask
    again."""

    def seen():
        attention = [(args[0].shape, options) for op, args, options in calls if op == "attention"]
        return [(shape, options["mask"], options["cu_seqlens"], options["causal"]) for shape, options in attention]

    model = fuse(compress(random_model(), CompressionConfig.preset("ppe", k=4, ratio=0.5, layers=layers)))
    samples = Prompt([2, ("image", (1, 4, 4)), 3], seed=1), Prompt([3, ("image", (1, 2, 2)), 1])
    inputs = batch(*samples, side=side)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        stages = [real.sum(1).tolist() for real in cache.ppe_state.masks]
        assert len(seen()) == 1 + 3
        for layer, (shape, mask, borders, causal) in enumerate(seen()[1:]):  # the first is the tower's
            first, second = stages[-1 if layers and layer >= layers[0] else 0]
            assert (mask, borders, causal) == (None, [0, first, first + second], True)
            assert shape[2] == first + second
        calls.clear()
        model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache)
    assert all(mask.dtype == torch.bool and borders is None for _, mask, borders, _ in seen())


def test_segments_hold_where_a_layer_is_given_copies():
    """FSDP's mixed precision and device maps make copies; older transformers' tables are then no longer views."""
    model = fuse(compress(random_model(), CompressionConfig.preset("ppe", k=4)))
    expected, true = logits(model, INPUTS), exact(model, lambda: logits(model, INPUTS))
    model.model.language_model.rotary_emb.register_forward_hook(lambda *args: tuple(part.clone() for part in args[-1]))
    assert_rounds_alike(logits(model, INPUTS), expected, true)


def test_segments_follow_the_tokens_to_another_device():
    segments = Segments((0, 1, 3), torch.tensor([1, 2, 3]), torch.tensor([3, 0, 1, 2]))
    row = segments.row(torch.empty(2, 4, 2, 8, device="meta"))
    assert (row.shape, segments.batch(row, 2).shape) == ((1, 4, 3, 8), (2, 4, 2, 8))


def test_several_tokens_that_go_on_see_all_of_the_prompt():
    """There is no mask, and there are more keys than queries."""
    more, alone = torch.tensor([[7, 8, 9]]), batch(Prompt([2, ("image", (1, 3, 5)), 3], seed=1))

    def last(model):
        cache = model(**alone, use_cache=True).past_key_values
        return model(input_ids=more, past_key_values=cache).logits

    model = compress(random_model(), CompressionConfig.preset("ppe", k=4))
    with torch.no_grad():
        expected, true = last(model), exact(model, lambda: last(model))
        assert_rounds_alike(last(fuse(model)), expected, true)


def test_decoding_does_not_ask_what_is_compiled(monkeypatch):
    """Looking through all modules takes milliseconds, so it is done once per prompt."""
    asked = []
    monkeypatch.setattr(vision_language, "is_traced", lambda module: bool(asked.append(1)))
    model = fuse(compress(random_model(), CompressionConfig.preset("ppe", k=4)))
    model.generate(**IMAGES, max_new_tokens=5, **GREEDY)
    assert len(asked) == 1


def test_another_attention_that_was_asked_for_is_kept(calls):
    model = random_model()
    real = IMAGES["attention_mask"].bool()
    expected = logits(model, with_types(IMAGES))[real]
    true = exact(model, lambda: logits(model, with_types(IMAGES))[real])
    fuse(model).set_attn_implementation("eager")
    calls.clear()
    assert_rounds_alike(logits(model, with_types(IMAGES))[real], expected, true)
    assert [op for op, _, _ in calls].count("rotary") == 1  # the vision tower's one block


def test_unfuse_leaves_no_trace():
    model = random_model()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    compress(fuse(fuse(model)), CompressionConfig.preset("keep_one"))
    unfuse(model)
    restore(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


@pytest.mark.parametrize(
    "prompts", [IMAGES, batch(Prompt([2, ("image", (1, 3, 5)), 3], seed=1))], ids=["padded", "one"]
)
@torch.no_grad()
def test_a_static_cache_answers_as_a_growing_one(prompts):
    """transformers makes no mask for a prompt without padding, and a static cache returns keys of its full length."""
    model = compress(fuse(random_model()), CompressionConfig.preset("ppe", k=4, layers=[1], before_llm=True))

    def steps(cache) -> list[torch.Tensor]:
        out = [model(**prompts, past_key_values=cache, use_cache=True).logits[:, -1]]
        for token in (5, 6, 7):
            ids = torch.full((len(prompts["input_ids"]), 1), token)
            out.append(model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1])
        return out

    text = model.config.text_config

    def growing() -> list[torch.Tensor]:
        return steps(DynamicCache(config=text))

    found = steps(StaticCache(config=text, max_cache_len=64))
    assert_rounds_alike(found, growing(), exact(model, growing))
