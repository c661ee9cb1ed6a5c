"""Devices on which tests of tensors run: the CPU, and the emulated Ascend device if it is active (make test-npu)."""

import ascend_emulator

DEVICES = ("cpu", "npu") if ascend_emulator.active() else ("cpu",)
