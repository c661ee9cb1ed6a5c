"""Untouched and compressed models side by side, for the tests with other libraries' code."""

import copy
import inspect

import pytest
import torch
from support import IMAGE_ID, QUICK_FAMILIES, Prompt, batch, random_model
from transformers import Qwen2_5_VLForConditionalGeneration

from ppe_npu import CompressionConfig, compress

FAMILIES = QUICK_FAMILIES
SETTINGS = {
    "dense": CompressionConfig.preset("dense"),
    "one": CompressionConfig.preset("ppe", k=2, ratio=1.0),
    "ppe": CompressionConfig.preset("ppe", k=2),
    "cascade": CompressionConfig.preset("ppe", k=2, layers=[0, 2]),
}
# transformers takes mm_token_type_ids since 5.3; before that, generate() refuses them.
TAKES_TYPES = "mm_token_type_ids" in inspect.signature(Qwen2_5_VLForConditionalGeneration.forward).parameters
newer = pytest.mark.skipif(not TAKES_TYPES, reason="before 5.3 untouched models number and refuse otherwise")
WHOLE = ("dense", "one")  # nothing is merged: the outputs are those of the untouched model
PICTURES = [
    Prompt([6, "start", ("image", (1, 4, 5)), 5], seed=1),
    Prompt([4, "start", ("image", (1, 2, 3)), 8], seed=2),
]


def compressed(plain, setting: str):
    """A compressed copy of an untouched model."""
    return compress(copy.deepcopy(plain), SETTINGS[setting])


def pictures(side: str = "left", **kwargs) -> dict:
    """Two prompts of different lengths with a picture each, with all inputs that untouched transformers needs."""
    inputs = batch(*PICTURES, side=side, **kwargs)
    if TAKES_TYPES:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_ID).long()
    return inputs


@torch.no_grad()
def out(model, inputs: dict, **kwargs):
    """The output of the model's forward, without gradients."""
    return model(**inputs, **kwargs)


__all__ = ["FAMILIES", "PICTURES", "SETTINGS", "WHOLE", "compressed", "newer", "out", "pictures", "random_model"]
