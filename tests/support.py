"""Tiny random models and random prompts for the tests of the engine."""

from dataclasses import dataclass, field

import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from twins import twin

IMAGE_ID, VIDEO_ID, START_ID, END_ID, PAD_ID, VOCAB = 90, 91, 92, 93, 0, 100
PATCH = 3 * 2 * 4 * 4  # channels x temporal patch x patch x patch
SECTIONS = [8, 12, 12]


_VISION = {
    "depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "initializer_range": 0.3,
}  # fmt: skip
_FAMILIES = {
    "qwen2_vl": (
        Qwen2VLConfig, Qwen2VLForConditionalGeneration, {"embed_dim": 32, "hidden_size": 128, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration,
        {
            "depth": 1, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 128, "window_size": 16,
            "fullatt_block_indexes": [], "tokens_per_second": 2,
        },
    ),
    "qwen3_vl": (
        Qwen3VLConfig, Qwen3VLForConditionalGeneration,
        {
            "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 128, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
}  # fmt: skip
FAMILIES = tuple(_FAMILIES)  # families whose layers all attend; Qwen3.5 has tests of its own
# For many tests of one kind: Qwen2-VL is slow, because its decoder is Qwen2.5-VL's.
QUICK_FAMILIES = tuple(pytest.param(name, marks=pytest.mark.slow) if name == "qwen2_vl" else name for name in FAMILIES)
_FAMILIES["qwen3_5"] = (
    Qwen3_5Config, Qwen3_5ForConditionalGeneration,
    {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 128, "num_position_embeddings": 64},
)  # fmt: skip
_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip
_FAMILIES["qwen3_vl_moe"] = (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, _FAMILIES["qwen3_vl"][2])
_FAMILIES["qwen3_5_moe"] = (Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, _FAMILIES["qwen3_5"][2])
_LINEAR = {  # three linear layers around one that attends, and one after them
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"],
    "num_hidden_layers": 5, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip


def random_model(seed: int = 0, family: str = "qwen2_5_vl", tower: dict | None = None, **text):
    """A model with head_dim 64 and M-RoPE sections [8, 12, 12] ([16, 8, 8] for Qwen3-VL, whose t is longest), so that K
    may be 1, 2 or 4. Qwen3.5 rotates half of a head, in sections [6, 5, 5].

    tower, text: other settings of the vision and the text config.
    """
    key = (seed, family, repr(tower), repr(sorted(text.items())), torch.get_default_dtype(), torch.get_default_device())
    return twin(key, lambda: _random_model(seed, family, tower, text))


def _random_model(seed: int, family: str, tower: dict | None, text: dict):
    torch.manual_seed(seed)
    experts, kind = (_EXPERTS if family.endswith("_moe") else {}), family.removesuffix("_moe")
    sections = {"qwen3_vl": [16, 8, 8], "qwen3_5": [6, 5, 5]}.get(kind, SECTIONS)
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": sections}
    rope |= {"partial_rotary_factor": 0.5} if kind == "qwen3_5" else {}
    text = experts | (_LINEAR if kind == "qwen3_5" else {}) | text
    config_class, model_class, vision = _FAMILIES[family]
    config = config_class(
        vision_config={**_VISION, **vision, **(tower or {})},
        text_config={
            "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 64,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096,
            "rope_parameters": rope,
            "initializer_range": 0.2, "pad_token_id": PAD_ID, "bos_token_id": 1, "eos_token_id": 2, **text,
        },
        image_token_id=IMAGE_ID, video_token_id=VIDEO_ID, vision_start_token_id=START_ID, vision_end_token_id=END_ID,
        tie_word_embeddings=False,
    )  # fmt: skip
    config.initializer_range = 0.2
    model = model_class(config).eval()
    slow_to_forget(model)
    return model


def family_of(names):
    """A fixture, for a test file's `family`: each of these families in turn."""
    return pytest.fixture(params=names)(lambda request: request.param)


def model_with(towers: dict):
    """A fixture, for a test file's `model`: a random model of the fixture `family`, whose tower is the one of these
    for the family, if there is one."""
    return pytest.fixture()(lambda family: random_model(family=family, tower=towers.get(family)))


def slow_to_forget(model) -> None:
    """Makes the states of linear attention decay slowly. As transformers initialises them, sums of log decays are so
    large that results are rounded differently where padding shifts the chunks of tokens."""
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            torch.nn.init.uniform_(parameter, -5, -2)


@dataclass
class Prompt:
    """One sample. A part is a number (of text tokens), "start" (the token by which older transformers finds images) or
    (kind, (t, h, w) in tokens); "frames" is a video whose frames stand apart, each after a text token."""

    parts: list
    seed: int = 0
    ids: list[int] = field(default_factory=list, init=False)
    pixels: dict = field(init=False)
    grids: dict = field(init=False)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)
        self.pixels, self.grids = {"image": [], "video": []}, {"image": [], "video": []}
        for part in self.parts:
            if part == "start":
                self.ids.append(START_ID)
                continue
            if isinstance(part, int):
                self.ids += torch.randint(3, 80, (part,), generator=generator).tolist()
                continue
            kind, (t, h, w) = part
            if kind == "frames":
                for _ in range(t):
                    self.ids += [*torch.randint(3, 80, (1,), generator=generator).tolist(), START_ID]
                    self.ids += [VIDEO_ID] * (h * w)
                kind = "video"
            else:
                self.ids += [IMAGE_ID if kind == "image" else VIDEO_ID] * (t * h * w)
            self.pixels[kind].append(torch.randn(t * h * w * 4, PATCH, generator=generator))
            self.grids[kind].append([t, 2 * h, 2 * w])


def batch(*prompts: Prompt, side: str = "left", pad_to: int = 0, seconds: float = 1.0) -> dict[str, torch.Tensor]:
    """Model inputs of several prompts, padded on one side (to at least pad_to)."""
    length = max(pad_to, *(len(p.ids) for p in prompts)) if len(prompts) > 1 else max(pad_to, len(prompts[0].ids))
    ids = torch.full((len(prompts), length), PAD_ID)
    mask = torch.zeros_like(ids)
    for row, p in enumerate(prompts):
        place = slice(length - len(p.ids), None) if side == "left" else slice(0, len(p.ids))
        ids[row, place] = torch.tensor(p.ids)
        mask[row, place] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        grids = [grid for p in prompts for grid in p.grids[kind]]
        if grids:
            inputs[name] = torch.cat([pixels for p in prompts for pixels in p.pixels[kind]])
            inputs[f"{kind}_grid_thw"] = torch.tensor(grids)
    if "video_grid_thw" in inputs:
        inputs["second_per_grid_ts"] = torch.full((len(inputs["video_grid_thw"]),), seconds)
    return inputs


def real_rows(tensor: torch.Tensor, output_mask: torch.Tensor) -> list[torch.Tensor]:
    """The unpadded part of each sample of [B, L, ...]."""
    return [row[mask.bool()] for row, mask in zip(tensor, output_mask)]
