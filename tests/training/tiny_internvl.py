"""A tiny InternVL with the demo's words: a tile is 16 x 16 pixels and 4 tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from ppe_npu.demo import clips, tiny

WORDS = (*clips.WORDS, *(f"Frame{number}:" for number in range(1, 33)))
MARKS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"} | {
    "video_token": "<video>"
}
VOCABULARY = tiny.vocabulary_of((*MARKS.values(), *WORDS))
TEMPLATE = tiny.CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n").replace(
    "<|vision_start|><|video_pad|><|vision_end|>", "<video>\n"
)
SIDE, TOKENS = 16, 4


def build_processor() -> InternVLProcessor:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(dict(VOCABULARY), unk_token=tiny.UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*tiny.SPECIAL_TOKENS, *MARKS.values()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=tiny.PAD,
        eos_token=tiny.END,
        unk_token=tiny.UNKNOWN,
        extra_special_tokens=MARKS,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    size = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image = GotOcr2ImageProcessor(**size, crop_to_patches=True, min_patches=1, max_patches=4)
    video = InternVLVideoProcessor(**size)
    return InternVLProcessor(image, fast, video, image_seq_length=TOKENS, chat_template=TEMPLATE)


def build_model(seed: int = 0) -> InternVLForConditionalGeneration:
    torch.manual_seed(seed)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": [SIDE, SIDE], "patch_size": [4, 4]}
    text = {"model_type": "qwen2", "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 64}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"eos_token_id": VOCABULARY[tiny.END], "pad_token_id": VOCABULARY[tiny.PAD], "bos_token_id": None}
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=VOCABULARY["<IMG_CONTEXT>"],
        image_seq_length=TOKENS,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config)


def save(folder: Path, seed: int = 0) -> Path:
    build_model(seed).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


def write_records(folder: Path, count: int = 6) -> Path:
    """Writes records of clips and pictures alternately, each with one question; returns the .jsonl."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        clip = clips.make_clip(rng)
        _, question, answer = clip.questions()[0]
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        row = {"id": str(number), "conversations": turns}
        if number % 2:
            Image.fromarray(clip.pixels(4)[0]).resize((40, 20)).save(folder / f"{number}.png")
            row["image"] = f"{number}.png"
        else:
            clips.write_clip(folder / f"{number}.mov", clip.pixels(4))
            row["video"], turns[0]["value"] = f"{number}.mov", f"<video>\n{question}"
        rows.append(json.dumps(row))
    (folder / "data.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "data.jsonl"
