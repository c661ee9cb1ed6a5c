"""A tiny Qwen2.5-VL: transformers' own processor and model classes, random weights, three dozen words.

    processor = build_processor()        # saved and read back with AutoProcessor like any other
    model = build_model(seed=0)          # Qwen2_5_VLForConditionalGeneration, about 0.6 M parameters

An image of 48x48 pixels becomes 12x12 patches of 4 pixels and 6x6 = 36 visual tokens. The vision tower sees windows of
2x2 visual tokens and has no full attention, so a token's features do not say where in the picture it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ppe_npu.demo.scenes import COLOURS, IMAGE_SIZE, QUESTION_TYPES, SHAPES

if TYPE_CHECKING:
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

PATCH = 4  # pixels along one side of a patch
MERGE = 2  # patches along one side of a visual token
WINDOW = 2  # visual tokens along one side of an attention window of the vision tower
HIDDEN, LAYERS, HEADS = 128, 2, 2  # of the language model; 64 channels per head, 32 of them rotary
SECTIONS = (8, 12, 12)  # rotary channels of t, h and w, each divisible by a merged token's four positions
ROPE_THETA = 1.5  # six rows and columns need fast channels: with 4, columns are learned late, with 1e6 never
VISUAL_TOKENS = (IMAGE_SIZE // (PATCH * MERGE)) ** 2
END, PAD, UNKNOWN = "<|im_end|>", "<|endoftext|>", "<unk>"
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = ("system", "user", "assistant", *QUESTION_TYPES, *COLOURS, *SHAPES, *(str(digit) for digit in range(10)))


def vocabulary_of(words: Sequence[str]) -> dict[str, int]:
    """word -> token id, of the special tokens and of these words."""
    return {word: number for number, word in enumerate((*SPECIAL_TOKENS, UNKNOWN, *words))}


VOCABULARY = vocabulary_of(WORDS)

# Qwen2.5-VL's own form, without its default system message: the vocabulary cannot spell one.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' or 'video' in part -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


def build_tokenizer(vocabulary: Mapping[str, int] = VOCABULARY) -> PreTrainedTokenizerFast:
    """One token per word; whitespace only separates, so the template's newlines cost nothing. Other words are <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_processor(
    vocabulary: Mapping[str, int] = VOCABULARY, side: int = IMAGE_SIZE, **more: Any
) -> Qwen2_5_VLProcessor:
    """A Qwen2_5_VLProcessor for this vocabulary: 48x48 images stay as they are and become 36 <|image_pad|> tokens.

    Args:
        vocabulary: the tokenizer's. side: pixels along a side of images and frames. more: settings of both processors.
    """
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    except ImportError:  # releases of transformers in which the Pillow processor has no name of its own
        from transformers import Qwen2VLImageProcessor as Qwen2VLImageProcessorPil

    settings = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "size": {"shortest_edge": side**2, "longest_edge": side**2},  # in pixels, of the whole image
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        **more,
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**settings),
        tokenizer=build_tokenizer(vocabulary),
        video_processor=Qwen2VLVideoProcessor(**settings),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    seed: int, vocabulary: Mapping[str, int] = VOCABULARY, **vision: Any
) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2_5_VLForConditionalGeneration with weights drawn from `seed`, fp32, on the CPU.

    Vision: 1 block, width 48, 2 heads, window attention only. Text: 2 layers, hidden 128, 2 heads of 64 channels.

    Args:
        vocabulary: the tokenizer's. vision: settings of the vision tower that replace these.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(_config(vocabulary, vision))
        _set_scales(model)
    return model


def _config(vocabulary: Mapping[str, int], changed: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": 1,
        "hidden_size": 48,
        "num_heads": 2,
        "intermediate_size": 96,
        "in_channels": 3,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "spatial_merge_size": MERGE,
        "window_size": WINDOW * MERGE * PATCH,
        "fullatt_block_indexes": [],
        "out_hidden_size": HIDDEN,
        "hidden_act": "silu",
        "initializer_range": 0.1,
        **changed,
    }
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "intermediate_size": 320,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 512,
        "initializer_range": 0.08,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": list(SECTIONS)},
        "bos_token_id": None,
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[PAD],
    }
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=False,
    )


@torch.no_grad()
def _set_scales(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Scale visual features to RMS ~0.6: clustering uses their distances, and its density saturates if they are large.

    Word embeddings start at about the same scale; in the text layers only the residual stream depends on it.
    """
    model.model.visual.merger.mlp[2].weight.normal_(0.0, 0.05)
    model.model.language_model.embed_tokens.weight.normal_(0.0, 0.3)
