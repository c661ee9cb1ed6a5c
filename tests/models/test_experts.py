"""Mixture-of-experts models of families that otherwise have dense layers."""

import pytest
import torch
from families import GRIDS, supported
from foreign import newer
from prompts import GREEDY, kept_logits, logits, with_types
from support import random_model
from tiles import PRUNE, config_of, inputs_of, painted
from tolerances import assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.errors import InputError

FAMILIES = ["qwen3_vl_moe", "qwen3_5_moe"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    model = random_model(family=request.param)
    model.set_experts_implementation("eager")  # the others do not support fp64
    return model


PROMPTS = [
    painted([2, "start", ("image", (1, 4, 5)), 3, ("frames", (3, 3, 4)), 2], seed=1),
    painted([1, "start", ("image", (1, 3, 3)), 4], seed=3),
]


def test_dense_is_the_untouched_model(model):
    inputs = with_types(inputs_of("qwen3_vl", *PROMPTS))
    real = inputs["attention_mask"].bool()
    restore(model)
    plain, true = logits(model, inputs)[real], exact(model, lambda: logits(model, inputs)[real])
    found = logits(compress(model, CompressionConfig.preset("dense")), inputs)[real]
    assert_rounds_alike(found, plain, true)


def test_a_prompts_result_depends_on_the_prompt_alone(model):
    compress(model, config_of([PRUNE, {"method": "dpc_knn", "ratio": 0.6, "layer": 1}]))

    def alone():
        return [kept_logits(model, prompt)[0] for prompt in PROMPTS]

    expected, true = alone(), exact(model, alone)
    assert_rounds_alike(kept_logits(model, *PROMPTS, pad_to=70), expected, true)
    inputs, settings = inputs_of("qwen3_vl", *PROMPTS), {"max_new_tokens": 4, **GREEDY}
    cached, plain = (model.generate(**inputs, **settings, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


@newer  # transformers 5.2 has no weight for this loss
def test_dense_gives_router_logits_and_the_loss_of_their_balance(model):
    """The argument output_router_logits overrides the config."""
    inputs = with_types(inputs_of("qwen3_vl", *PROMPTS))
    inputs["labels"] = inputs["input_ids"]
    restore(model)
    plain, true = told(model, inputs), exact(model, lambda: told(model, inputs))
    found = told(compress(model, CompressionConfig.preset("dense")), inputs)
    assert_rounds_alike(found, plain, true)
    assert len(found) == 2 + model.config.text_config.num_hidden_layers
    model.config.text_config.output_router_logits = True
    assert len(model(**inputs).router_logits) == len(found) - 2
    assert model(**inputs, output_router_logits=False).router_logits is None
    with pytest.raises(
        InputError, match="output_router_logits=True: a pass with skip_logits adds no load-balancing loss"
    ):
        model(**inputs, skip_logits=True)
    model.config.text_config.output_router_logits = False


@torch.no_grad()
def told(model, inputs: dict) -> list[torch.Tensor]:
    output = model(**inputs, output_router_logits=True)
    return [output.loss, output.aux_loss, *output.router_logits]


@supported
def test_router_logits_are_refused_where_the_decoder_is_transformers_own():
    model = GRIDS["glm4v_moe"].model()
    inputs = GRIDS["glm4v_moe"].sample(model, [2, "picture", 3], seed=1)
    compress(model, CompressionConfig.preset("ppe", ratio=0.5, k=2))
    with pytest.raises(InputError, match="output_router_logits=True: a model that merges tokens returns neither"):
        model(**inputs, labels=inputs["input_ids"], output_router_logits=True)


def test_router_logits_are_refused_where_tokens_are_merged(model):
    compress(model, config_of("alone"))
    with pytest.raises(InputError, match="output_router_logits=True: a model that merges tokens returns neither"):
        model(**inputs_of("qwen3_vl", PROMPTS[1]), output_router_logits=True)
