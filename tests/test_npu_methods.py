"""Every method on an Ascend device: alone, and, if it looks into the layers of a model, in a whole model.

Runs on the emulator only: make test-npu. tests/ascend_emulator/README.md says what that shows, and what not.
"""

import dataclasses

import ascend_emulator
import pytest
import torch
from prompts import GREEDY, MIXED
from support import FAMILIES, Prompt, batch, random_model

if not ascend_emulator.active():
    pytest.skip("the Ascend emulator is off: make test-npu", allow_module_level=True)

from methods import views

from ppe_npu import CompressionConfig, compress
from ppe_npu.backends import dispatch
from ppe_npu.methods.base import method_class
from ppe_npu.methods.listing import default, grouping
from ppe_npu.models.fused import fuse

DEVICE = "npu"
INSIDE = [name for name in grouping() if default(name).layers]  # methods that run only at layers


@pytest.mark.parametrize("name", grouping())
def test_a_method_makes_the_groups_that_it_makes_on_the_cpu(name):
    """The emulator computes as the CPU does, so a difference shows a call that the device takes differently."""
    method = default(name)
    parts = views.parts_of(method)
    sizes = views.sizes_of(method)
    kept = [method.kept(size) for size in sizes] if method.counts == "late" else [1 + size // 3 for size in sizes]
    view = views.view_of(method, parts, kept)
    there = {
        field.name: value.to(DEVICE)
        for field in dataclasses.fields(view)
        if isinstance(value := getattr(view, field.name), torch.Tensor)
    }
    found, expected = method.group(dataclasses.replace(view, **there)), method.group(view)
    assert found.labels.device.type == DEVICE
    for part in ("labels", "counts", "representatives"):
        assert torch.equal(getattr(found, part).cpu(), getattr(expected, part))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", INSIDE)
def test_a_method_looks_into_the_layers_of_a_fused_model(name, family):
    config = CompressionConfig(steps=[method_class(name)(layer=1)], k=4)
    model = compress(fuse(random_model(family=family)).to(DEVICE), config)
    kind = "frames" if family == "qwen3_vl" else "video"
    inputs = batch(Prompt([2, ("image", (1, 4, 5)), 3, (kind, (2, 4, 4)), 2], seed=1), MIXED[1])
    inputs = {k: v.to(DEVICE) for k, v in inputs.items() if family == "qwen2_5_vl" or k != "second_per_grid_ts"}
    answers = model.generate(**inputs, max_new_tokens=3, **GREEDY)
    assert answers.shape[1] == inputs["input_ids"].shape[1] + 3
    assert model.compression.report.tokens_after < model.compression.report.tokens_before


@pytest.mark.parametrize("name", ["ppe_plus", "tome"])
def test_sizes_are_counted_by_fused_attention(name):
    """Prompts in segments and steps of decoding: npu_fusion_attention and the operator for decoding take the sizes as a
    channel of the keys; neither takes a mask of numbers, and the reference stays unused."""
    keys = {"k": 4} if name == "ppe_plus" else {"metric": "tokens", "proportional_attention": True}
    config = CompressionConfig.preset(name, ratio=0.4, **keys)
    tokens = {}
    for device in ("cpu", DEVICE):
        model = compress(fuse(random_model()).to(device), config)
        dispatch.reset()
        inputs = {key: value.to(device) for key, value in batch(*MIXED[:2]).items()}
        tokens[device] = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, **GREEDY).cpu()
        packed = model(**inputs, labels=inputs["input_ids"], packed=True)
        packed.loss.backward()
    assert torch.equal(tokens[DEVICE], tokens["cpu"])
    assert dispatch.chosen()["attention"].startswith("torch_npu")
    assert "reference" not in dispatch.chosen()["attention"]
