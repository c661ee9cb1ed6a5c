"""The serving benchmark's small model costs what Qwen2.5-VL-7B costs, part by part, as counted."""

import torch
from bench.models import _TEXT, _VISION, SIZES
from bench.shares import Widths
from checkpoints import config_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ppe_npu.compat import ensure_mm_token_type_ids

PATCHES, TEXT, NEW = 4096, 10, 16


def real(size: str) -> Widths:
    text, vision, tied = SIZES[size]
    vision = {**_VISION, **vision, "out_hidden_size": text["hidden_size"]}
    return Widths(Qwen2_5_VLConfig(text_config={**_TEXT, **text}, vision_config=vision, tie_word_embeddings=tied))


def percents(widths: Widths) -> dict[str, int]:
    """Each part's percentage of a request; for the head, its percentage of a decoding step."""
    parts = widths.request(PATCHES, PATCHES // 4 + TEXT, NEW)
    found = {part: flops / sum(parts.values()) for part, flops in parts.items()}
    found["head"] = widths.head / (widths.head + widths.layers)
    return {part: round(100 * share) for part, share in found.items()}


def test_parts_are_as_large_as_in_the_checkpoint():
    assert percents(Widths(config_of("qwen2_5_vl", "7b"))) == percents(real("7b"))


def test_the_sizes_differ_in_the_share_of_the_tower():
    assert 2 * percents(Widths(config_of("qwen2_5_vl", "small")))["tower"] < percents(real("7b"))["tower"]
    assert percents(real("3b"))["tower"] > percents(real("7b"))["tower"]


@torch.no_grad()
def test_the_formula_is_what_torch_counts():
    config = config_of("qwen2_5_vl")
    config._attn_implementation = "eager"  # whose products the counter sees
    model, widths = Qwen2_5_VLForConditionalGeneration(config).eval(), Widths(config)
    tokens, text = 16, 4
    ids = torch.full((1, tokens + text), 30)
    ids[:, :tokens] = config.image_token_id
    inputs = {"input_ids": ids, "image_grid_thw": torch.tensor([[1, 8, 8]])}
    inputs = ensure_mm_token_type_ids(inputs, config.image_token_id, config.video_token_id)
    with FlopCounterMode(display=False) as counter:
        model(**inputs, pixel_values=torch.randn(4 * tokens, 96), logits_to_keep=1)
    count = tokens + text
    unseen = widths.pairs(count**2 - count * (count + 1) // 2)  # a causal mask's zeros
    with FlopCounterMode(display=False) as angles:  # of positions times frequencies, a product in older transformers
        model.model.language_model.rotary_emb(torch.ones(1), torch.arange(count).expand(3, 1, -1))
    parts = widths.request(4 * tokens, count, 1)
    assert counter.get_total_flops() == sum(parts.values()) + unseen + angles.get_total_flops()


def test_a_step_at_the_pixels_spares_the_tower():
    widths = real("7b")
    assert widths.tower(PATCHES, PATCHES) == widths.tower(PATCHES)
    assert widths.tower(PATCHES, PATCHES // 2) < widths.tower(PATCHES) / 2
