"""Models whose pictures lose cells, with caches of a fixed length and with adapters."""

import pytest
import torch
from prompts import GREEDY, logits
from support import random_model
from test_packing import text_labels
from tiles import MODELS, TOWERS, config_of, inputs_of, painted, prompts_of
from tolerances import assert_rounds_alike, exact

from ppe_npu import compress

pytestmark = pytest.mark.half


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def some(request):
    return request.param


@pytest.mark.parametrize("positions", ["ppe", "keep_one"])
@pytest.mark.parametrize("numbers", [[0], [0, 2]], ids=["alone", "padded"])
def test_a_static_cache_decodes_as_a_dynamic_one(some, numbers, positions):
    model, prompts = MODELS[some], prompts_of(some)
    compress(model, config_of("then clusters" if positions == "ppe" else "alone", positions))
    inputs, settings = inputs_of(some, *(prompts[number] for number in numbers)), {"max_new_tokens": 5, **GREEDY}
    expected = model.generate(**inputs, **settings)
    for _ in range(2):  # the second time transformers empties the same cache and refills it
        assert torch.equal(model.generate(**inputs, **settings, cache_implementation="static"), expected)


def test_adapters_of_the_tower_and_the_decoder_are_their_weights(some):
    """An adapter gives the results of weights into which it has been merged, and all adapters get gradients."""
    from peft import LoraConfig, get_peft_model

    inputs = inputs_of(some, *prompts_of(some), side="right")
    labels = text_labels(inputs)
    base = random_model(family=some, tower=TOWERS.get(some))
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=r".*(visual\.blocks.*\.qkv|q_proj|down_proj)"))
    generator = torch.Generator().manual_seed(0)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
    compress(wrapped, config_of("then clusters"))
    wrapped(**inputs, labels=labels).loss.backward()
    learnt = {name: weight.grad for name, weight in wrapped.named_parameters() if weight.grad is not None}
    assert learnt
    assert all("lora_" in name and gradient.abs().max() > 0 for name, gradient in learnt.items())
    assert any("visual" in name for name in learnt)
    found, true = logits(wrapped, inputs), exact(wrapped, lambda: logits(wrapped, inputs))
    assert_rounds_alike(logits(wrapped.merge_and_unload(), inputs), found, true)


def test_what_one_picture_is_leaves_another_ones_features_as_they_are_bit_by_bit(some):
    """Both pictures always keep equally many cells, so products have the same shapes and round in the same way."""
    model, parts, features = MODELS[some], [("image", (1, 4, 5)), ("image", (1, 4, 5))], []
    config = config_of([{"method": "pixelprune", "max_kept": 7, "fill": True}])
    hook = model.model.visual.register_forward_hook(lambda _m, _a, out: features.append(out.pooler_output))
    for seed in (1, 2):
        prompt = painted(parts, seed=seed)
        prompt.pixels["image"][1] = painted(parts, seed=9).pixels["image"][1]
        logits(compress(model, config), inputs_of(some, prompt))
    hook.remove()
    one, other = (rows.split(7) for rows in features)
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
