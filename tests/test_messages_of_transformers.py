"""Conversations in any of transformers' own forms give the inputs that its apply_chat_template makes."""

from __future__ import annotations

import base64
import collections
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ppe_npu.checkpoints.loading import load_processor
from ppe_npu.data.inputs import build_inputs

SAID = ["row red", "count", "  a ", "", "\n", "é中", "{{ 1 }}", "<b>"]


def written(part: dict[str, Any], dice: random.Random) -> Any:
    """The same mapping in a class drawn at random."""
    return dice.choice([dict, collections.OrderedDict, type("Own", (dict,), {})])(part)


def random_part(paths: list[str], dice: random.Random) -> tuple[Any, dict[str, Any]]:
    """(a part in any form, that part with its picture opened): transformers' own reader of files needs a library."""
    path = dice.choice(paths)
    opened = Image.open(path)
    forms = [
        {"type": "image", "image": path},
        {"type": "image", "path": path},
        {"type": "image", "url": path},
        {"type": "image", "image": opened},
        {"type": "image", "url": opened},
        {"type": "image", "image": np.asarray(opened)},
        {"type": "image", "image": torch.from_numpy(np.array(opened)).permute(2, 0, 1)},
        {"type": "image", "base64": base64.b64encode(Path(path).read_bytes()).decode()},
        {"type": "image_url", "image_url": {"url": path}},
    ]
    if dice.random() < 0.5:
        text = {"type": "text", "text": dice.choice(SAID)}
        return written(text, dice), text
    return written(dice.choice(forms), dice), {"type": "image", "image": opened}


def random_conversation(paths: list[str], dice: random.Random) -> tuple[list[Any], list[Any]]:
    """(a conversation in any form, the same one as transformers accepts it everywhere)."""
    both = [({"role": "system", "content": "red"},) * 2] if dice.random() < 0.3 else []
    for _ in range(dice.randint(1, 3)):
        parts = [random_part(paths, dice) for _ in range(dice.randint(1, 4))]
        given, plain = ([part[side] for part in parts] for side in (0, 1))
        said = dice.choice(SAID) if dice.random() < 0.2 else None
        both.append(({"role": "user", "content": said or given}, {"role": "user", "content": said or plain}))
        if dice.random() < 0.4:
            both.append(({"role": "assistant", "content": dice.choice(["3", [{"type": "text", "text": "a"}]])},) * 2)
    if dice.random() < 0.1:
        both.append(({"role": dice.choice(["tool", "developer"]), "content": "3"},) * 2)
    return [written(given, dice) for given, _ in both], [dict(plain) for _, plain in both]


@pytest.mark.parametrize("seeds", [range(30), pytest.param(range(1000, 3000), marks=pytest.mark.slow)], ids=len)
def test_a_conversation_is_what_transformers_makes_of_it(tiny_folder, write_image, seeds):
    processor, taken = load_processor(tiny_folder), 0
    try:
        processor.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True, return_dict=True)
    except TypeError:
        pytest.skip("this transformers takes no text as a message's content")
    paths = [write_image(f"p {side}.png", seed=side, size=(64, side)) for side in (48, 64, 80)]
    for seed in seeds:
        dice = random.Random(seed)
        given, plain = random_conversation(paths, dice)
        how = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        expected, found = processor.apply_chat_template(plain, **how), build_inputs(processor, given)
        assert all(torch.equal(found[key], expected[key]) for key in expected), (seed, given)
        taken += "pixel_values" in found
    assert taken > len(seeds) // 2
