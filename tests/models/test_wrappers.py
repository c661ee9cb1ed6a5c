"""Wrappers around a compressed model's forward: accelerate's mixed precision and hooks, and plain functions."""

import copy
import functools
from types import MethodType

import pytest
import torch
from accelerate import Accelerator, dispatch_model
from accelerate.hooks import remove_hook_from_module
from accelerate.state import AcceleratorState
from foreign import SETTINGS, compressed, pictures, random_model
from prompts import GREEDY
from tolerances import depth_error

from ppe_npu import compress, restore
from ppe_npu.models import is_compressed


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(True)


def mlp_dtype(model):
    seen = []
    hook = model.model.language_model.layers[0].mlp.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    model(**pictures())
    hook.remove()
    return seen[0]


def length(model):
    return model(**pictures()).logits.shape[1]


def test_wrappers_of_others_outlive_a_second_compression_and_a_restoration(accelerator):
    plain = random_model()
    model = accelerator.prepare(compressed(plain, "ppe"))
    short, whole = length(model), pictures()["input_ids"].shape[1]
    assert mlp_dtype(model) == torch.bfloat16
    for change, expected in (
        (lambda: compress(model, SETTINGS["one"]), whole),
        (lambda: restore(model), whole),
        (lambda: compress(model, SETTINGS["ppe"]), short),
    ):
        change()
        assert mlp_dtype(model) == torch.bfloat16
        assert length(model) == expected
    restore(model)
    assert not is_compressed(model)
    assert torch.equal(model(**pictures()).logits, accelerator.prepare(copy.deepcopy(plain))(**pictures()).logits)


def test_a_function_around_forward_is_called_once_a_pass():
    model, calls = compressed(random_model(), "ppe"), []
    ours = model.forward
    model.forward = lambda *args, **kwargs: (calls.append(1), ours(*args, **kwargs))[1]
    for number, setting in enumerate(SETTINGS, start=1):
        compress(model, SETTINGS[setting])
        model(**pictures())
        assert len(calls) == number
    restore(model)
    assert length(model) == pictures()["input_ids"].shape[1]
    assert len(calls) == len(SETTINGS) + 1


@pytest.mark.parametrize("first", ["compress", "prepare"])
def test_unwrapping_mixed_precision_leaves_the_compression(accelerator, first):
    model, inputs = random_model(), pictures()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    expected = compressed(model, "ppe")(**inputs, labels=labels)
    if first == "compress":
        model = accelerator.prepare(compress(model, SETTINGS["ppe"]))
    else:
        model = compress(accelerator.prepare(model), SETTINGS["ppe"])
    output = accelerator.unwrap_model(model, keep_fp32_wrapper=False)(**inputs, labels=labels)
    assert torch.equal(output.labels, expected.labels)
    # A wrapper that came first stays underneath; the compression is kept in both cases.
    expected_loss, error = expected.loss.detach(), depth_error(3, torch.bfloat16)
    assert (output.loss - expected_loss).abs() <= (0 if first == "compress" else error * expected_loss)


def test_hooks_of_a_dispatched_model(accelerator):
    model, devices = compressed(random_model(), "ppe"), {"model.visual": "cpu", "model.language_model": "cpu"}
    short = length(model)
    dispatch_model(model, devices | {"lm_head": "cpu"}, force_hooks=True)
    hooked = vars(model)["forward"]
    assert length(model) == short
    compress(model, SETTINGS["cascade"])
    assert vars(model)["forward"] is hooked
    cascaded = length(model)
    remove_hook_from_module(model, recurse=True)
    assert length(model) == cascaded
    restore(model)
    assert length(model) == pictures()["input_ids"].shape[1]


def test_hooks_of_a_model_that_was_dispatched_first_go_again(accelerator):
    parts = (
        "model.visual",
        *(f"model.language_model.{name}" for name in ("embed_tokens", "layers", "norm", "rotary_emb")),
    )
    devices = dict.fromkeys((*parts, "lm_head"), "cpu")  # accelerate's own maps also name such small parts
    model = compress(dispatch_model(random_model(), devices, force_hooks=True), SETTINGS["ppe"])
    expected = model(**pictures()).logits
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(model(**pictures()).logits, expected)
    restore(model)
    assert torch.equal(model(**pictures()).logits, random_model()(**pictures()).logits)


@pytest.mark.parametrize("setting", SETTINGS)
@torch.no_grad()
def test_a_wrapper_that_shows_the_signature_of_the_class_generates_the_same(setting):
    """TRL wraps a policy's forward in this way for its fused head."""
    model, asked = compressed(random_model(), setting), {"max_new_tokens": 3, **GREEDY}
    expected, ours = model.generate(**pictures(), **asked), model.forward

    @functools.wraps(type(model).forward)
    def forward(self, *args, **kwargs):
        return ours(*args, **kwargs)

    model.forward = MethodType(forward, model)
    assert torch.equal(model.generate(**pictures(), **asked), expected)
