"""The costs that generate() reports for a batch: bytes of the prompts' keys and values, without padding and answers."""

from __future__ import annotations

import pytest
from families import EVERY
from PIL import Image
from support import Prompt, random_model
from support import batch as prompts

from ppe_npu.checkpoints.loading import load_model
from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import build_inputs
from ppe_npu.evaluation.generation import generate
from ppe_npu.models import compress

CASCADE = CompressionConfig.preset("ppe", ratio=(0.5, 0.25), k=4, layers=(0, 1))
TEXTS = ("look", "what is in the middle of this picture, and why is it there at all?")


@pytest.fixture
def model(tiny_folder):
    return load_model(tiny_folder)


def batch(processor, *texts):
    turns = []
    for number, text in enumerate(texts):
        image = Image.new("RGB", (96, 96 + 48 * number), "red")
        turns.append([{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}])
    return build_inputs(processor, turns)


def token_bytes(model):
    """Bytes of one token's keys and values in one layer, in fp32."""
    text = model.config.text_config
    return 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 4


@pytest.mark.parametrize("config", [None, CASCADE, CompressionConfig.preset("dense")], ids=["dense", "cascade", "none"])
def test_prompt_kv_is_of_the_prompts_own_tokens(model, tiny_processor, config):
    if config is not None:
        compress(model, config)
    inputs = batch(tiny_processor, *TEXTS)
    short, long = (generate(model, tiny_processor, inputs, most) for most in (1, 9))
    assert short.prompt_kv_bytes == long.prompt_kv_bytes  # the answer does not count
    assert short.kv_bytes < long.kv_bytes
    alone = generate(model, tiny_processor, batch(tiny_processor, TEXTS[0]), 1)
    assert alone.prompt_kv_bytes == short.prompt_kv_bytes[:1]  # padding does not count
    assert alone.kv_bytes == alone.prompt_kv_bytes[0]  # the one token of an answer is not cached
    layers = model.config.text_config.num_hidden_layers
    tokens = inputs["attention_mask"].sum(1) - inputs["mm_token_type_ids"].gt(0).sum(1)  # text
    wanted = (tokens + 0.0) * layers + layers * inputs["mm_token_type_ids"].new_tensor(short.tokens_after).float()
    assert short.prompt_kv_bytes == pytest.approx((wanted * token_bytes(model)).tolist())


@pytest.mark.skipif("qwen3_5" not in EVERY, reason="an older transformers keeps that state in caches of its own")
def test_layers_of_linear_attention_keep_no_keys(tiny_processor):
    """Two of this Qwen3.5's five layers have attention, and a compressed prompt's bytes are those of the two."""
    model = random_model(family="qwen3_5")
    compress(model, CompressionConfig.preset("keep_one", ratio=0.5))
    inputs = prompts(Prompt([3, ("image", (1, 4, 6)), 5]))
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    found = generate(model, tiny_processor, inputs, 1)
    assert found.tokens_after == [12]
    text = model.config.text_config
    assert found.prompt_kv_bytes == [20 * 2 * 2 * text.num_key_value_heads * text.head_dim * 4]
    assert found.prompt_kv_bytes == [found.kv_bytes]
