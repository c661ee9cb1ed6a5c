"""Qwen2.5-VL models with random weights, and prompts for them; nothing is downloaded.

Sizes 3b and 7b are those of the public config.json of Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct. Models are created
on the device, in their dtype, and weights are drawn there: normal with a standard deviation of 0.02, norms 1, biases 0.
"""

import math
from dataclasses import dataclass

import torch

from ppe_npu.compat import ensure_mm_token_type_ids
from ppe_npu.models.fused import fuse

_VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_channels": 3, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2, "hidden_act": "silu",
}  # fmt: skip
_TEXT = {
    "bos_token_id": None, "eos_token_id": None,
    "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "hidden_act": "silu", "use_sliding_window": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
_SMALL_TOWER = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": []}


def _text(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, words: int) -> dict:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": words,
    }  # fmt: skip


# Placeholders: image, video, start, end.
_QWEN_IDS, _SMALL_IDS = (151655, 151656, 151652, 151653), (8, 9, 6, 7)

# size -> (text, vision, whether the head shares the embedding's weights). The tower of "cpu" is negligible; that of
# "tiny" has a second block, so that patches can leave before it.
SIZES: dict[str, tuple[dict, dict, bool]] = {
    "tiny": (_text(3, 256, 256, 2, 1, 1000), _SMALL_TOWER | {"depth": 2}, True),
    "cpu": (_text(12, 1024, 2816, 8, 2, 1000), _SMALL_TOWER, True),
    "3b": (_text(36, 2048, 11008, 16, 2, 151936), {}, True),
    "7b": (_text(28, 3584, 18944, 28, 4, 152064), {}, False),
}


@dataclass(frozen=True)
class Prompt:
    """Text, one image or video, text. grid: (frames, height, width) in tokens. text: total number of text tokens."""

    grid: tuple[int, int, int]
    text: int = 66

    @property
    def visual(self) -> int:
        return math.prod(self.grid)

    def inputs(self, model) -> dict:
        """Model inputs of random pixels and text. Batch 1."""
        device, config, vision = model.device, model.config, model.config.vision_config
        frames, height, width = self.grid
        kind, token = ("video", config.video_token_id) if frames > 1 else ("image", config.image_token_id)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(10, 1000, (1, self.text + self.visual), generator=generator)
        first = self.text // 2
        ids[:, first : first + self.visual] = token
        merge = vision.spatial_merge_size
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        noise = torch.Generator(device).manual_seed(2)
        pixels = torch.randn(self.visual * merge**2, values, generator=noise, device=device)
        name = "pixel_values_videos" if kind == "video" else "pixel_values"
        grid = torch.tensor([[frames, merge * height, merge * width]])
        inputs = ensure_mm_token_type_ids(
            {"input_ids": ids, f"{kind}_grid_thw": grid}, config.image_token_id, config.video_token_id
        )
        seconds = {"second_per_grid_ts": [1.0]} if kind == "video" else {}
        return {key: value.to(device) for key, value in inputs.items()} | {name: pixels.to(model.dtype)} | seconds


PROMPTS: dict[str, Prompt] = {
    "image-1280": Prompt((1, 32, 40)),
    "image-4096": Prompt((1, 64, 64)),
    "video-64x256": Prompt((64, 16, 16)),
    "video-16x128": Prompt((16, 8, 16)),
    "video-3x16": Prompt((3, 4, 4), text=9),
    "image-16": Prompt((1, 4, 4), text=9),
}


def config_of(size: str):
    """transformers' config of a size."""
    from transformers import Qwen2_5_VLConfig

    text, vision, tied = SIZES[size]
    image, video, start, end = _QWEN_IDS if text["vocab_size"] > max(_QWEN_IDS) else _SMALL_IDS
    return Qwen2_5_VLConfig(
        text_config={**_TEXT, **text},
        vision_config={**_VISION, **vision, "out_hidden_size": text["hidden_size"]},
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
        tie_word_embeddings=tied,
    )  # fmt: skip


def build(size: str, device: torch.device, dtype: torch.dtype):
    """A model of this size in eval mode on the device, with fused operators."""
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.initialization import no_init_weights

    config, before = config_of(size), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    _draw(model, device)
    return fuse(model.eval())


@torch.no_grad()
def _draw(model, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name.split(".")[-2] or "ln_q" in name:
            parameter.fill_(1)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.normal_(0, 0.02, generator=generator)
