"""The vLLM plug-in's own parts on an emulated Ascend device: items, digits, rows, rotation.

Runs on the emulator only: make test-npu. vllm-ascend itself cannot be installed beside it; docs/serving.md says which
parts of the plug-in are not shown there.
"""

import ascend_emulator
import pytest
import torch
from ascend_emulator import counters
from support import IMAGE_ID, VIDEO_ID
from tolerances import OPERATORS, assert_equal, assert_near

if not ascend_emulator.active():
    pytest.skip("the Ascend emulator is off: make test-npu", allow_module_level=True)

from ppe_npu import CompressionConfig
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.items import merge_items
from ppe_npu.engine.positions import contiguous_channels
from ppe_npu.engine.spans import IMAGE, VisionTokens
from ppe_npu.serving.rotary import RowRotary, rotary_columns
from ppe_npu.serving.rows import placed_rows, split_rows, with_rows

CHANNELS = contiguous_channels([16, 24, 24])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_items_and_their_rows_are_those_of_the_cpu(dtype):
    vision = VisionTokens(IMAGE_ID, VIDEO_ID, 2, 2)
    made = Compression(CompressionConfig.preset("random", ratio=0.4, positions="ppe"), vision, CHANNELS, 4)
    features = torch.randn(30 + 12, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    grids = [[1, 10, 12], [1, 6, 8]]
    expected, found = (merge_items(made, IMAGE, features.to(device), grids) for device in ("cpu", "npu"))
    for cpu, npu in zip(expected, found):
        assert_near(npu.features.cpu(), cpu.features, OPERATORS)
        joined = with_rows(npu.features, npu.rows + 250)  # more than bf16 counts exactly
        own, rows = split_rows(joined, 24)
        assert_equal(rows.cpu(), cpu.rows + 250, "rows")
        assert_equal(own.cpu(), npu.features.cpu(), "features")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotation_by_rows_is_the_vendor_operator(dtype):
    generator = torch.Generator().manual_seed(1)
    line = torch.tensor([0, 1, -3, -3, -3, 40, 41])
    local = torch.randint(0, 30, (24, 7), generator=generator)
    query, key = (torch.randn(7, heads * 128, generator=generator).to(dtype) for heads in (4, 2))
    table = rotary_columns(1e4 ** (-torch.arange(64) / 64), 100).to(dtype)
    module = RowRotary(table, CHANNELS, 24)
    expected = module(module.turns(placed_rows(line, local)).T, query, key)
    counters.reset()
    module.to("npu")
    found = module(module.turns(placed_rows(line.npu(), local.npu())).T, query.npu(), key.npu())
    assert counters.npu()["npu_rotary_mul"] == 2
    for npu, cpu in zip(found, expected):
        assert_near(npu.cpu(), cpu, OPERATORS)
