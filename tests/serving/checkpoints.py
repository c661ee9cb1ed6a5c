"""Random checkpoints that vLLM's CPU attention takes: a head width of 128, sections 16/24/24 (24/20/20 of Qwen3-VL).

python tests/serving/checkpoints.py FOLDER [family] [size]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ppe_npu.demo.tiny import CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS, UNKNOWN, WORDS

FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_5", "internvl")
MARKS = {  # InternVL's, with the words of the other families
    "start_image_token": "<|vision_start|>", "end_image_token": "<|vision_end|>",
    "context_image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
}  # fmt: skip
SIDE = 16  # pixels of a tile of InternVL: 4 tokens
# A video's frames are named by their second on Qwen3-VL: "<0.2 seconds>" is two words for this tokenizer.
SECONDS = tuple(f"<{tenth / 10:.1f}" for tenth in range(100))
VOCABULARY = {word: n for n, word in enumerate((*SPECIAL_TOKENS, UNKNOWN, *WORDS, *SECONDS, "seconds>"))}
PATCH, MERGE = 4, 2
LARGEST = 256 * 256  # pixels of a picture: vLLM tries the largest one when it starts


class Size(NamedTuple):
    """The text model's channels, layers, heads, key heads and MLP; the tower's blocks, channels, MLP, heads, and pixels
    along a window's side. words: the size of the vocabulary, or 0 for the words that the tests need."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    mlp: int
    blocks: int
    width: int
    tower_mlp: int
    tower_heads: int = 2
    window: int = 16
    words: int = 0

    @property
    def vocabulary(self) -> dict[str, int]:
        return VOCABULARY | {f"word{number}": number for number in range(len(VOCABULARY), self.words)}


SIZES = {
    "tiny": Size(256, 2, 2, 1, 320, 2, 64, 128),
    "small": Size(768, 8, 6, 3, 2048, 4, 128, 256),  # 54 million: a prompt of 1,000 tokens takes a core about a second
    # Tower, decoder and head have the shares of a 1,024-token picture's cost that they have in Qwen2.5-VL-7B.
    "7b": Size(768, 5, 6, 1, 4064, 5, 240, 640, tower_heads=3, window=32, words=5840),
}


def build_processor(family: str = "qwen2_5_vl", largest: int = LARGEST, size: str = "tiny") -> Any:
    """The family's processor, for pictures up to `largest` pixels; tokens stand for 8 x 8 of them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(SIZES[size].vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    named = {"additional_special_tokens": list(SPECIAL_TOKENS)}
    if family == "internvl":
        named = {"extra_special_tokens": MARKS}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
        **named, clean_up_tokenization_spaces=False, model_max_length=16384,
    )  # fmt: skip
    if family == "internvl":
        return _tile_processor(fast)
    edges = {"shortest_edge": 16 * 16, "longest_edge": largest}
    settings = {
        "patch_size": PATCH, "temporal_patch_size": 2, "merge_size": MERGE,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    name, video, frames = {
        "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor", edges),
        "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", edges),
        # Its size is that of a whole video.
        "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor", {**edges, "longest_edge": 4 * largest}),
    }["qwen3_vl" if family == "qwen3_5" else family]
    images = getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor
    return getattr(transformers, name)(
        image_processor=images(**settings, size=edges),
        tokenizer=fast,
        video_processor=getattr(transformers, video)(**settings, size=frames),
        chat_template=CHAT_TEMPLATE,
    )


def _tile_processor(tokenizer: Any) -> Any:
    """InternVL's processor."""
    import transformers

    size = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image = transformers.GotOcr2ImageProcessor(**size, crop_to_patches=True, min_patches=1, max_patches=4)
    video = transformers.InternVLVideoProcessor(**size)
    return transformers.InternVLProcessor(image, tokenizer, video, image_seq_length=4, chat_template=CHAT_TEMPLATE)


def _text_config(family: str, size: str, positions: int) -> dict[str, Any]:
    own = SIZES[size]
    sections = [16, 24, 24] if family in ("qwen2_vl", "qwen2_5_vl") else [24, 20, 20]
    rope = {"rope_type": "default", "rope_theta": 1e4} | ({} if family == "internvl" else {"mrope_section": sections})
    text: dict[str, Any] = {
        "vocab_size": len(own.vocabulary), "hidden_size": own.hidden, "intermediate_size": own.mlp,
        "num_hidden_layers": own.layers, "num_attention_heads": own.heads, "num_key_value_heads": own.key_heads,
        "head_dim": 128,
        "max_position_embeddings": positions, "initializer_range": 0.08 if size == "tiny" else 0.02,
        "rope_parameters": rope | ({"mrope_interleaved": True} if family in ("qwen3_vl", "qwen3_5") else {}),
        "bos_token_id": None, "eos_token_id": VOCABULARY[END], "pad_token_id": VOCABULARY[PAD],
        "tie_word_embeddings": False,
    }  # fmt: skip
    if family == "internvl":
        text |= {"model_type": "qwen2"}
    if family == "qwen3_5":  # one layer that has no positions, one that rotates half of each head
        text |= {"layer_types": ["linear_attention", "full_attention"], "linear_conv_kernel_dim": 4}
        text |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128}  # what vLLM's kernel for CPUs takes
        text |= {"linear_num_key_heads": 1, "linear_num_value_heads": 2}
        text["rope_parameters"] |= {"mrope_section": [12, 10, 10], "partial_rotary_factor": 0.5}
    return text


def config_of(family: str, size: str = "tiny", positions: int = 16384) -> Any:
    """The family's config."""
    import transformers

    sized = SIZES[size]
    hidden, blocks, width, mlp, heads = sized.hidden, sized.blocks, sized.width, sized.tower_mlp, sized.tower_heads
    tower = {
        "depth": blocks, "num_heads": heads, "patch_size": PATCH, "temporal_patch_size": 2, "spatial_merge_size": MERGE,
        "initializer_range": 0.1,
    }  # fmt: skip
    own = {"hidden_size": width, "intermediate_size": mlp, "out_hidden_size": hidden, "hidden_act": "silu"}
    name, tower = {
        "qwen2_vl": ("Qwen2VLConfig", {**tower, "embed_dim": width, "hidden_size": hidden, "mlp_ratio": mlp // width}),
        "qwen2_5_vl": (
            "Qwen2_5_VLConfig",
            {**tower, **own, "window_size": sized.window, "fullatt_block_indexes": [blocks - 1]}
            | {"tokens_per_second": 2},
        ),
        "qwen3_vl": (
            "Qwen3VLConfig", {**tower, **own, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        ),
        "qwen3_5": ("Qwen3_5Config", {**tower, **own, "num_position_embeddings": 64}),
        "internvl": (
            "InternVLConfig",
            {
                "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": blocks,
                "num_attention_heads": heads, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH],
                "initializer_range": 0.1,
            },
        ),
    }[family]  # fmt: skip
    text = _text_config(family, size, positions)
    ids = {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    }  # fmt: skip
    own = {"downsample_ratio": 0.5, "image_seq_length": 4} if family == "internvl" else {}
    named = ("image_token_id",) if family == "internvl" else ids
    own |= {key: VOCABULARY[ids[key]] for key in named}
    return getattr(transformers, name)(vision_config=tower, text_config=text, tie_word_embeddings=False, **own)


@torch.no_grad()
def save(folder: str | Path, family: str = "qwen2_5_vl", size: str = "tiny", largest: int = LARGEST) -> str:
    """Writes a checkpoint of random weights, scaled so that attention depends more on positions; returns its folder."""
    import transformers

    config = config_of(family, size)
    torch.manual_seed(0)
    model = getattr(transformers, type(config).__name__.replace("Config", "ForConditionalGeneration"))(config)
    text = model.model.language_model
    text.embed_tokens.weight.normal_(0.0, 0.3)
    for layer in text.layers:
        if not hasattr(layer, "self_attn"):
            continue
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            part.weight.mul_(2.0)
    merger = model.model.multi_modal_projector if family == "internvl" else model.model.visual.merger
    last = [module for module in merger.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.weight.normal_(0.0, 0.05)
    model.eval().save_pretrained(folder)
    build_processor(family, largest, size).save_pretrained(folder)
    return str(folder)


def main(*arguments: str) -> None:
    print(save(*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
