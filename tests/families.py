"""A tiny random model of every family, and prompts for it.

The number of a picture's tokens is taken from the untouched model's own get_image_features, so that the package's
numbers are checked against an independent source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from support import IMAGE_ID, PAD_ID, START_ID, VIDEO_ID, VOCAB, Prompt, batch, slow_to_forget

from ppe_npu.models.known import SINCE

supported = pytest.mark.skipif(
    Version(transformers.__version__) < Version(SINCE), reason=f"transformers before {SINCE}, which compress() refuses"
)
SIDE, PATCH = 16, 4  # pixels of a tile and of a patch: 4 x 4 patches
_CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "projection_dim": 16, "initializer_range": 0.3,
}  # fmt: skip
_SIGLIP = {**_CLIP, "model_type": "siglip_vision_model"}
_IDEFICS = {name: value for name, value in _CLIP.items() if name not in ("model_type", "projection_dim")}
_INTERNVIT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH], "initializer_range": 0.3,
}  # fmt: skip
_PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16]]
TEXTS: dict[str, dict] = {
    "qwen2": {},
    "qwen3": {},
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
}


def text_config(kind: str, **other) -> dict:
    return {
        "model_type": kind, "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "initializer_range": 0.2,
        "pad_token_id": PAD_ID, "bos_token_id": 1, "eos_token_id": 2, **TEXTS[kind], **other,
    }  # fmt: skip


def pictures(generator, *sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Arrays of images as consecutive tiles. A size is (number of tiles,)."""
    return {"pixel_values": torch.randn(sum(size[0] for size in sizes), 3, SIDE, SIDE, generator=generator)}


def sized_pictures(generator, *sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Arrays of images, each with as many tiles as the largest can have. A size is (height, width) in pixels."""
    tiles = torch.randn(len(sizes), 5, 3, SIDE, SIDE, generator=generator)
    return {"pixel_values": tiles, "image_sizes": torch.tensor([list(size) for size in sizes])}


def sampled_pictures(generator, *sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Arrays of all images of a sample in one row, padded by black ones. A size is (1,)."""
    tiles = torch.zeros(1, 3, 3, SIDE, SIDE)
    tiles[:, : len(sizes)] = torch.randn(1, len(sizes), 3, SIDE, SIDE, generator=generator)
    return {"pixel_values": tiles}


@dataclass(frozen=True)
class Tiny:
    """A tiny family.

    Args:
        name: prefix of its config and model in transformers, as in InternVLConfig.
        config: arguments of its config other than the text config.
        pictures: makes the arrays of pictures of given sizes.
        sizes: the sizes of three pictures that samples use in order.
        clip: number of frames of a video, 0 if the family takes none.
        text: the text model's kind. own: additional settings of the text model.
    """

    name: str
    config: dict[str, Any]
    pictures: Callable[..., dict[str, torch.Tensor]] = pictures
    sizes: tuple[tuple[int, ...], ...] = ((1,), (1,), (1,))
    clip: int = 0
    text: str = "qwen2"
    own: tuple[tuple[str, Any], ...] = ()

    def model(self, seed: int = 0, text: str | None = None):
        torch.manual_seed(seed)
        own = text_config(text or self.text, **dict(self.own))
        ids = {"image_token_id": IMAGE_ID, "image_token_index": IMAGE_ID}
        ids |= {"video_token_id": VIDEO_ID, "video_token_index": VIDEO_ID} if self.clip else {}
        config = getattr(transformers, f"{self.name}Config")(
            text_config=own, **ids, tie_word_embeddings=False, pad_token_id=PAD_ID, **self.config
        )
        config.initializer_range = 0.2
        return getattr(transformers, f"{self.name}ForConditionalGeneration")(config).eval()

    def sample(self, model, parts: list, seed: int) -> dict[str, torch.Tensor]:
        """One prompt: parts are numbers of text tokens, "picture" (the next of the sizes) or "clip"."""
        generator, ids, sizes, arrays = torch.Generator().manual_seed(seed), [], iter(self.sizes), {}
        given = [next(sizes) for part in parts if part == "picture"]
        if given:
            arrays = self.pictures(generator, *given)
        counts = iter(self.counts(model, arrays, given))
        for part in parts:
            if part == "picture":
                ids += [IMAGE_ID] * next(counts)
            elif part == "clip":
                arrays["pixel_values_videos"] = torch.randn(1, self.clip, 3, SIDE, SIDE, generator=generator)
                ids += [VIDEO_ID] * len(self.features(model, "video", arrays)[0])
            else:
                ids += torch.randint(3, 80, (part,), generator=generator).tolist()
        return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long), **arrays}

    def counts(self, model, arrays: dict, given: list) -> list[int]:
        """The number of tokens of each picture."""
        features = self.features(model, "image", arrays) if given else []
        if self.pictures is pictures and given:
            each = len(features[0])
            return [size[0] * each for size in given]
        if self.pictures is sampled_pictures and given:
            return [len(features[0]) // len(given)] * len(given)
        return [len(part) for part in features]

    def features(self, model, kind: str, arrays: dict):
        pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
        others = {"image_sizes": arrays["image_sizes"]} if kind == "image" and "image_sizes" in arrays else {}
        with torch.no_grad():
            return getattr(model.model, f"get_{kind}_features")(arrays[pixels], **others).pooler_output


@dataclass(frozen=True)
class TinyGrid:
    """A tiny family whose images and videos are grids of patches.

    Args:
        name: prefix of its config and model in transformers, as in Qwen2VLConfig.
        vision, text: settings of these configs. sections: those of M-RoPE. own: settings of the whole config.
        clip: how a prompt contains a video: "video" in one run, "frames" one by one, "" not at all.
        one_placeholder: whether a video's tokens have the image's id.
        seconds: the argument for the duration of frames.
        square: whether a patch is given as [channels, side, side], of one time.
    """

    name: str
    vision: dict[str, Any]
    text: dict[str, Any] = field(default_factory=dict)
    sections: tuple[int, ...] = (4, 6, 6)
    clip: str = "video"
    one_placeholder: bool = False
    seconds: str = ""
    own: dict[str, Any] = field(default_factory=dict)
    square: bool = False

    def model(self, seed: int = 0):
        torch.manual_seed(seed)
        rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": list(self.sections)}
        text = {**text_config("qwen2"), "rope_parameters": rope, **self.text}
        text = {name: value for name, value in text.items() if name != "model_type" and value is not None}
        ids = {"image_token_id": IMAGE_ID, "video_token_id": VIDEO_ID, "vision_start_token_id": START_ID}
        config = getattr(transformers, f"{self.name}Config")(
            vision_config={**_GRID_VISION, **self.vision},
            text_config=text,
            **ids,
            tie_word_embeddings=False,
            **self.own,
        )
        config.initializer_range = 0.2
        model = getattr(transformers, f"{self.name}ForConditionalGeneration")(config).eval()
        slow_to_forget(model)
        if "experts" in "".join(self.text):
            model.set_experts_implementation("eager")  # the only one that supports fp64
        return model

    def sample(self, model, parts: list, seed: int) -> dict[str, torch.Tensor]:
        """One prompt, as in Tiny. The pictures have 4 x 5 and 3 x 3 tokens, the clip 3 frames of 2 x 5."""
        grids, own = iter([(1, 4, 5), (1, 3, 3)]), []
        for part in parts:
            own.append(part if isinstance(part, int) else "start")
            if part == "picture":
                own.append(("image", next(grids)))
            elif part == "clip":
                own.append((self.clip, (3, 2, 5)))
        inputs = batch(Prompt(own, seed=seed))
        seconds = inputs.pop("second_per_grid_ts", None)
        if self.seconds and seconds is not None:
            inputs[self.seconds] = seconds
        if self.seconds != "video_second_per_grid":  # Qwen2.5-Omni takes no token types
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_ID) + 2 * (inputs["input_ids"] == VIDEO_ID)
        if self.square and "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].unflatten(1, (3, 2, 4, 4))[:, :, 0]
        if self.one_placeholder:
            inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == VIDEO_ID, IMAGE_ID)
        return inputs


def prompts(tiny, model) -> list[dict[str, torch.Tensor]]:
    """Three prompts: two pictures (and a clip, if a call may have both), text alone, one picture."""
    clip = ["clip", 2] if tiny.clip and not getattr(tiny, "one_placeholder", False) else []
    parts = [[2, "picture", 3, "picture", 2, *clip], [5], [1, "picture", 4]]
    return [tiny.sample(model, own, seed) for seed, own in enumerate(parts)]


def together(samples: list[dict], side: str = "left", pad_to: int = 0) -> dict[str, torch.Tensor]:
    """A batch of samples, padded on one side."""
    length = max(pad_to, *(sample["input_ids"].shape[1] for sample in samples))
    out: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys(name for sample in samples for name in sample):
        rows = [sample[name] for sample in samples if name in sample]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            gaps = [length - row.shape[1] for row in rows]
            pads = [(gap, 0) if side == "left" else (0, gap) for gap in gaps]
            rows = [torch.nn.functional.pad(row, pad, value=PAD_ID) for row, pad in zip(rows, pads)]
        out[name] = torch.cat(rows)
    return out


_GRID_VISION = {
    "depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "intermediate_size": 64, "out_hidden_size": 64, "initializer_range": 0.3,
}  # fmt: skip
_DEEPSTACK = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
_GLM: dict[str, Any] = {"clip": "frames", "one_placeholder": True}
_GLM_VISION = {"image_size": 16, "intermediate_size": 64}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GLM_EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "head_dim": 64, "n_shared_experts": 1,
}  # fmt: skip
_WINDOWS = {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2}
GRIDS = {
    "qwen2_vl": TinyGrid("Qwen2VL", {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}),
    "qwen2_5_vl": TinyGrid("Qwen2_5_VL", _WINDOWS, seconds="second_per_grid_ts"),
    "qwen3_vl": TinyGrid("Qwen3VL", _DEEPSTACK, sections=(8, 4, 4), clip="frames"),
    "qwen3_vl_moe": TinyGrid("Qwen3VLMoe", _DEEPSTACK, _EXPERTS, sections=(8, 4, 4), clip="frames"),
    "glm4v": TinyGrid("Glm4v", _GLM_VISION, **_GLM),
    "glm46v": TinyGrid("Glm46V", {**_GLM_VISION, "model_type": "glm4v_vision"}, {"model_type": "glm4v_text"}, **_GLM),
    "glm4v_moe": TinyGrid("Glm4vMoe", _GLM_VISION, _GLM_EXPERTS, **_GLM),  # half of a head's channels are rotated
    "qwen2_5_omni_thinker": TinyGrid(
        "Qwen2_5OmniThinker", _WINDOWS, seconds="video_second_per_grid",
        own={"audio_config": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 16,
                              "output_dim": 64}, "position_id_per_seconds": 2},
    ),
}  # fmt: skip
GRIDS["paddleocr_vl"] = TinyGrid(
    "PaddleOCRVL", {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}, clip="", square=True
)


_HALF_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "mrope_section": [8, 4, 4], "partial_rotary_factor": 1.0,
    },
}  # fmt: skip
_EMBEDDED = {"num_position_embeddings": 64}
GRIDS["qwen3_5"] = TinyGrid("Qwen3_5", _EMBEDDED, _HALF_LINEAR, clip="frames")
_SHARED = {**_HALF_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 32}
GRIDS["qwen3_5_moe"] = TinyGrid("Qwen3_5Moe", _EMBEDDED, _SHARED, clip="frames")


_NEXT = {"vision_config": _CLIP, "image_grid_pinpoints": _PINPOINTS, "vision_feature_layer": -2}
_SIZES = ((30, 40), (17, 60), (50, 20))
_BATCHED = {"pictures": sampled_pictures, "text": "llama"}
TINY = {
    "internvl": Tiny(
        "InternVL", {"vision_config": _INTERNVIT, "downsample_ratio": 0.5, "image_seq_length": 4},
        sizes=((3,), (1,), (2,)),
    ),
    "llava_onevision": Tiny(
        "LlavaOnevision",
        {**_NEXT, "vision_config": _SIGLIP, "vision_feature_layer": -1, "vision_aspect_ratio": "anyres_max_2"},
        sized_pictures, _SIZES, clip=3,
    ),
    "llava_next": Tiny("LlavaNext", _NEXT, sized_pictures, _SIZES, text="llama"),
    "llava_next_video": Tiny("LlavaNextVideo", _NEXT, sized_pictures, _SIZES, clip=3, text="mistral"),
    "llava": Tiny("Llava", {"vision_config": _CLIP, "vision_feature_layer": -2}, text="llama"),
    "vipllava": Tiny("VipLlava", {"vision_config": _CLIP, "vision_feature_layers": [-1, -2]}, text="qwen3"),
    "idefics3": Tiny("Idefics3", {"vision_config": _IDEFICS, "scale_factor": 2}, **_BATCHED),
    "smolvlm": Tiny("SmolVLM", {"vision_config": _IDEFICS, "scale_factor": 2}, **_BATCHED),
}  # fmt: skip
EVERY = {**GRIDS, **TINY}
