"""A tiny random model of every family whose decoder counts positions in one dimension, and prompts for it.

How many tokens a picture has is counted on what the untouched model's own get_image_features gives, so that what the
package says about it is held against somebody else's word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from support import IMAGE_ID, PAD_ID, VIDEO_ID, VOCAB

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
    """Tiles one after the other; a size is of one image: its number of tiles."""
    return {"pixel_values": torch.randn(sum(size[0] for size in sizes), 3, SIDE, SIDE, generator=generator)}


def sized_pictures(generator, *sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Of each image as many tiles as the largest can have; a size is (height, width) in pixels."""
    tiles = torch.randn(len(sizes), 5, 3, SIDE, SIDE, generator=generator)
    return {"pixel_values": tiles, "image_sizes": torch.tensor([list(size) for size in sizes])}


def sampled_pictures(generator, *sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """All images of a sample in one row, padded by black ones; a size is (1,)."""
    tiles = torch.zeros(1, 3, 3, SIDE, SIDE)
    tiles[:, : len(sizes)] = torch.randn(1, len(sizes), 3, SIDE, SIDE, generator=generator)
    return {"pixel_values": tiles}


@dataclass(frozen=True)
class Tiny:
    """A tiny family.

    Args:
        name: of its config and model in transformers, as in InternVLConfig.
        config: what it is given beside its text config.
        pictures: the arrays of some pictures of these sizes.
        sizes: of three pictures that it may be given.
        clip: frames of a video, 0 where it takes none.
        text: the text model's kind. own: settings of the text model's of its own.
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
        """Tokens of each picture."""
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


def together(samples: list[dict], side: str = "left", pad_to: int = 0) -> dict[str, torch.Tensor]:
    """A batch of samples, padded on one side."""
    length = max(pad_to, *(sample["input_ids"].shape[1] for sample in samples))
    out: dict[str, torch.Tensor] = {}
    for name, fill in (("input_ids", PAD_ID), ("attention_mask", 0)):
        rows = [sample[name][0] for sample in samples]
        gaps = [length - len(row) for row in rows]
        pads = [(gap, 0) if side == "left" else (0, gap) for gap in gaps]
        out[name] = torch.stack([torch.nn.functional.pad(row, pad, value=fill) for row, pad in zip(rows, pads)])
    for name in ("pixel_values", "image_sizes", "pixel_values_videos"):
        arrays = [sample[name] for sample in samples if name in sample]
        if arrays:
            out[name] = torch.cat(arrays)
    return out


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
    "idefics3": Tiny("Idefics3", {"vision_config": _IDEFICS, "scale_factor": 2}, **_BATCHED),
    "smolvlm": Tiny("SmolVLM", {"vision_config": _IDEFICS, "scale_factor": 2}, **_BATCHED),
}  # fmt: skip
