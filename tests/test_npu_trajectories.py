"""Twenty steps of learning on an Ascend device, compared with plain PyTorch in fp64 on the CPU.

Runs on the emulator only: make test-npu. tests/ascend_emulator/README.md says what that shows, and what not.
"""

import ascend_emulator
import pytest
import torch
from ascend_emulator import counters
from trajectories import STEPS, apart, compare, walk

if not ascend_emulator.active():
    pytest.skip("the Ascend emulator is off: make test-npu", allow_module_level=True)

from ppe_npu.parity.model import SETTINGS

QUICK = ("ppe", "ppe_cascade")


@pytest.mark.parametrize(
    "setting", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_the_devices_operators_take_the_cpus_way(setting):
    exact = walk(setting, dtype=torch.float64, fused=False)
    counters.reset()
    found = walk(setting, "npu")
    blocks = 1 + 3  # of the tower, and the decoder's layers
    for name in ("npu_fusion_attention_grad", "npu_swiglu_backward"):
        assert counters.npu()[name] == STEPS * blocks
    assert apart(found, exact) == {}
    compare(setting, "npu (emulated)", found, exact)
