"""Copies of compressed models: a deep copy has its own compression, a shallow one shares its original's modules."""

import copy
import pickle

import pytest
import torch
from prompts import APART, PPE, PRESETS, logits, with_types
from support import FAMILIES, Prompt, batch, random_model

from ppe_npu.models import compress, is_compressed, restore

pytestmark = pytest.mark.half

APART_FRAMES = [Prompt([2, "start", ("image", (1, 4, 5)), 3, ("frames", (2, 4, 4)), 2], seed=1), *APART[1:]]
CONFIGS = {"before the LLM": PPE, "cascade": PRESETS["cascade"]}


@pytest.fixture(params=FAMILIES)
def case(request):
    """(a compressed model, inputs, its logits, its logits before compression)."""
    model = random_model(family=request.param)
    inputs = with_types(batch(*(APART_FRAMES if request.param == "qwen3_vl" else APART)))
    plain = logits(model, inputs)
    compress(model, PPE)
    compressed = logits(model, inputs)
    assert compressed.shape[1] < plain.shape[1]
    return model, inputs, compressed, plain


def attributes(model):
    return {name: set(vars(module)) for name, module in model.named_modules()}


def test_restoring_a_shallow_copy_leaves_the_original_compressed(case):
    model, inputs, compressed, plain = case
    twin, before = copy.copy(model), attributes(model)
    assert torch.equal(logits(twin, inputs), compressed)
    restore(twin)
    assert attributes(model) == before
    assert (is_compressed(twin), is_compressed(model)) == (False, True)
    assert torch.equal(logits(twin, inputs), plain)
    assert torch.equal(logits(model, inputs), compressed)
    assert all(mine is theirs for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True))
    restore(model)
    assert torch.equal(logits(model, inputs), plain)
    assert attributes(model) == attributes(twin)


def test_restoring_the_original_leaves_a_shallow_copy_usable(case):
    model, inputs, _, plain = case
    twin = copy.copy(model)
    restore(model)
    assert torch.equal(logits(model, inputs), plain)
    assert torch.equal(logits(twin, inputs), plain), "its modules are the original's"
    assert torch.equal(logits(restore(twin), inputs), plain)
    assert not is_compressed(twin)
    assert attributes(model) == attributes(twin)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_shallow_copy_is_compressed_anew_by_itself(case, config):
    model, inputs, compressed, plain = case
    twin = compress(copy.copy(model), config)
    expected = logits(twin, inputs)
    assert torch.equal(logits(model, inputs), compressed)
    restore(model)
    assert torch.equal(logits(twin, inputs), expected)
    assert torch.equal(logits(model, inputs), plain)
    assert torch.equal(logits(restore(twin), inputs), plain)


@pytest.mark.parametrize("first", ["twin", "model"])
def test_a_deep_copy_is_compressed_and_restored_by_itself(case, first):
    model, inputs, compressed, plain = case
    model.compression.keep_groups = True
    twin = copy.deepcopy(model)
    assert twin.compression is not model.compression
    assert twin.compression.keep_groups
    assert torch.equal(logits(twin, inputs), compressed)
    one, other = (twin, model) if first == "twin" else (model, twin)
    assert torch.equal(logits(restore(one), inputs), plain)
    assert torch.equal(logits(other, inputs), compressed)
    assert torch.equal(logits(restore(other), inputs), plain)
    assert attributes(one) == attributes(other)


def test_a_deep_copy_of_a_shallow_copy(case):
    model, inputs, compressed, plain = case
    twin = copy.deepcopy(copy.copy(model))
    assert torch.equal(logits(twin, inputs), compressed)
    assert torch.equal(logits(restore(twin), inputs), plain)
    assert torch.equal(logits(model, inputs), compressed)


def test_modules_are_not_compressed_twice_for_two_models():
    """A shallow copy of a plain model looks like any model, so compressing it compresses the shared modules."""
    model = random_model()
    inputs = with_types(batch(*APART))
    plain = logits(model, inputs)
    twin = compress(copy.copy(model), PPE)
    with pytest.raises(
        ValueError, match=r"shares its decoder with another compressed model.* restore\(\) that model first"
    ):
        compress(model, PPE)
    restore(twin)
    assert torch.equal(logits(model, inputs), plain)
    assert logits(compress(model, PPE), inputs).shape[1] < plain.shape[1]


def test_pickling_is_refused_and_leaves_the_model_restorable(case):
    model, inputs, compressed, plain = case
    for given in (model, copy.copy(model)):
        with pytest.raises(TypeError, match="a compressed model cannot be pickled"):
            pickle.dumps(given)
    assert torch.equal(logits(model, inputs), compressed)
    assert torch.equal(logits(restore(model), inputs), plain)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(twin, inputs), plain)
    assert torch.equal(logits(compress(twin, PPE), inputs), compressed)
