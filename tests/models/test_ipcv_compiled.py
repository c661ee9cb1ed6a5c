"""A tower, or its blocks, compiled while a method works inside: results stay the same, because Python runs them."""

import pytest
import torch
from families import supported
from naive_ipcv import METHOD, TOWERS, config, given
from prompts import logits
from support import random_model
from test_ipcv_tiles import sample, tiny
from tolerances import assert_equal

from ppe_npu import compress, restore
from ppe_npu.methods import ToMeTower

PARTS = ["tower", pytest.param("blocks", marks=pytest.mark.slow)]


def check_compiled(model, tower, blocks, inputs, method, part):
    """Check that nothing is traced until the compression is removed."""
    torch.compiler.reset()  # code that other tests have compiled would not be traced again
    graphs = []

    def backend(graph, _examples):
        graphs.append(graph)
        return graph.forward

    compress(model, config(method))
    expected = logits(model, inputs)
    for module in [tower] if part == "tower" else blocks:
        module.compile(backend=backend)
    assert_equal(logits(model, inputs), expected)
    assert not graphs
    restore(model)
    grid = {"grid_thw": inputs["image_grid_thw"]} if "image_grid_thw" in inputs else {}
    with torch.no_grad():
        tower(inputs["pixel_values"], **grid)
    assert graphs


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("method", [METHOD, ToMeTower(0.4, merge_blocks=(1, 3))], ids=["ipcv", "tome_tower"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_qwens_tower(family, method, part):
    model = random_model(family=family, tower=TOWERS[family])
    check_compiled(model, model.model.visual, model.model.visual.blocks, given(family), method, part)


@pytest.mark.slow  # it compiles a second tower in each way
@supported
@pytest.mark.parametrize("part", PARTS)
def test_internvls_tower(part):
    model = tiny().model()
    check_compiled(model, model.model.vision_tower, model.model.vision_tower.encoder.layer, sample(model), METHOD, part)
