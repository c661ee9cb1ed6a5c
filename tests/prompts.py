"""Presets, prompts and shorthands that the tests of compressed models share."""

import inspect

import pytest
import torch
from support import IMAGE_ID, VIDEO_ID, Prompt, batch
from tolerances import assert_near, assert_rounds_alike, exact, slope_error
from transformers import Qwen2_5_VLForConditionalGeneration

from ppe_npu import CompressionConfig
from ppe_npu.methods.base import method_class, published

CONTROLS = tuple(name for name in published() if method_class(name).needs == {"places"})  # they look at no feature
PPE = CompressionConfig.preset("ppe", k=4)
PRESETS = {
    "chatunivi": CompressionConfig.preset("chatunivi"),
    "keep_one": CompressionConfig.preset("keep_one"),
    "ppe": PPE,
    "ppe score last": CompressionConfig.preset("ppe", k=2, order="score", members="last"),
    "two ratios": CompressionConfig.preset("ppe", k=4, ratio=[0.6, 0.3]),
    "events": CompressionConfig.preset("ppe", k=4, temporal_ratio=0.5),
    "cascade": CompressionConfig.preset("ppe", k=4, layers=[1, 2]),
    "cascade from 0": CompressionConfig.preset("ppe", k=2, layers=[0, 2], members="spread"),
    "both": CompressionConfig.preset("ppe", k=4, layers=[1], before_llm=True, temporal_ratio=0.5, ratio=0.6),
    "keep_one cascade": CompressionConfig.preset("keep_one", layers=[2]),
    "chatunivi cascade": CompressionConfig.preset("chatunivi", layers=[0, 1], ratio=[0.5, 0.4]),
}
# Presets whose parts other presets have, too, are slow.
_LESS = ("ppe score last", "two ratios", "cascade from 0", "keep_one cascade")
PRESET_CASES = [
    pytest.param(config, id=name, marks=pytest.mark.slow if name in _LESS else ()) for name, config in PRESETS.items()
]
MIXED = [
    Prompt([2, ("image", (1, 4, 5)), 3, ("video", (2, 4, 4)), 2], seed=1),
    Prompt([5], seed=2),
    Prompt([1, ("image", (1, 1, 1)), ("image", (1, 3, 3)), 4], seed=3),
]
# Prompts that plain transformers can number, too: a start token before every span, and text between spans.
APART = [
    Prompt([2, "start", ("image", (1, 4, 5)), 3, "start", ("video", (2, 4, 4)), 2], seed=1),
    MIXED[1],
    Prompt([1, "start", ("image", (1, 1, 1)), 2, "start", ("image", (1, 3, 3)), 4], seed=3),
]
# A random model may well "say" a placeholder, which without a cache would be read as the start of an image.
PLAN_INPUTS = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
GREEDY = {"do_sample": False, "eos_token_id": None, "suppress_tokens": [90, 91, 92, 93]}


def logits(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


def kept_logits(model, *prompts, side="left", pad_to=0):
    """Logits of each sample without padding."""
    inputs = batch(*prompts, side=side, pad_to=pad_to)
    rows = logits(model, inputs)
    lengths = [len(p.ids) for p in prompts]
    for span in model.compression.report.spans:
        lengths[span.sample] -= span.before - span.after
    return [row[len(row) - n :] if side == "left" else row[:n] for row, n in zip(rows, lengths)]


def check_cache(model, inputs, new_tokens=3):
    """Checks that the cache changes no id, and logits only by rounding; returns the run with the cache."""
    settings = {"max_new_tokens": new_tokens, **GREEDY, "return_dict_in_generate": True, "output_logits": True}
    cached, plain = (model.generate(**inputs, **settings, use_cache=use) for use in (True, False))
    true = exact(model, lambda: model.generate(**inputs, **settings, use_cache=False))
    assert torch.equal(cached.sequences, plain.sequences)
    assert_rounds_alike(cached.logits, plain.logits, true.logits)
    return cached


def check_alone(model, fused, prompts, rows, pad_to):
    """Checks that logits depend on the prompt alone: not on padding, other prompts, their order, or fused operators.

    Args:
        rows: kept_logits, or a function like it. pad_to: a length above that of the longest prompt.

    Returns:
        The logits of each prompt alone.
    """

    def alone():
        return [rows(model, prompt)[0] for prompt in prompts]

    expected, true = alone(), exact(model, alone)
    for other, side in ((model, "left"), (fused, "left"), (fused, "right")):
        assert_rounds_alike(rows(other, *prompts, side=side, pad_to=pad_to), expected, true)
    assert_rounds_alike(rows(model, *prompts[::-1], side="right", pad_to=pad_to)[::-1], expected, true)
    return expected


def with_types(inputs):
    """Adds what plain transformers needs to number the prompt, from 5.3 on."""
    if "mm_token_type_ids" not in inspect.signature(Qwen2_5_VLForConditionalGeneration.forward).parameters:
        return {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    ids = inputs["input_ids"]
    return inputs | {"mm_token_type_ids": (ids == IMAGE_ID).long() + 2 * (ids == VIDEO_ID).long()}


def check_labels(model):
    """Checks that a compressed model's labels stay with the text they were given for, and that its loss uses them."""
    inputs = batch(*MIXED, side="right")
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    out = model(**inputs, labels=labels)
    assert out.labels.shape == out.logits.shape[:2]
    text = (inputs["input_ids"] < IMAGE_ID) & inputs["attention_mask"].bool()
    for row, ids, mine in zip(out.labels, inputs["input_ids"], text):
        assert row[row >= 0].tolist() == ids[mine].tolist()
    shifted = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), out.labels[:, 1:].flatten())
    assert_near(out.loss, shifted, roundings=out.logits.shape[-1] + out.labels.numel())  # log_softmax, and the mean


@torch.no_grad()
def check_slope(model, inputs, labels, weight, direction, slope, step=2e-3):
    """Checks that the loss rises along `direction` (a unit vector like `weight`) by `slope`, which autograd gave."""

    def difference(size):
        losses = []
        for moved in (size, -size):
            weight.add_(moved * direction)
            losses.append(model(**inputs, labels=labels).loss.item())
            weight.sub_(moved * direction)
        return (losses[0] - losses[1]) / (2 * size), losses[0]

    (wide, _), (narrow, loss) = difference(2 * step), difference(step)
    assert abs(narrow - slope) <= slope_error(wide, narrow, loss, step), (narrow, slope)
