"""Where a test of tensors runs: on the CPU, and on an emulated Ascend device where there is one (make test-npu)."""

import ascend_emulator

DEVICES = ("cpu", "npu") if ascend_emulator.active() else ("cpu",)
