import importlib
import sys
from dataclasses import replace

import pytest
import torch
from kernel_device import DEVICE

from ppe_npu.backends import dispatch, registry

# The tensors are tiny: threads would only wait for each other, and for seconds if the machine is busy with other work.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_dispatch():
    """No test sees what another one chose, logged or found importable."""
    dispatch.reset()
    registry._import_problem.cache_clear()
    yield
    dispatch.reset()
    registry._import_problem.cache_clear()


@pytest.fixture
def on_cpu(monkeypatch):
    """on_cpu(kind, *names, package=module) replaces a vendor's package by `module`, and moves the implementations for
    devices of `kind` (those of the given names, or all) to the CPU, ahead of all others."""

    def install(kind: str, *names: str, **packages):
        if "torch_npu" in sys.modules:
            importlib.import_module("torch._dynamo")  # the real torch_npu patches it; load it before the stand-in
        for name, module in packages.items():
            monkeypatch.setitem(sys.modules, name, module)
        made = [entry for entry in registry.REGISTRY if entry.devices == (kind,) and (not names or entry.name in names)]
        moved = [replace(entry, devices=("cpu",)) for entry in made]
        monkeypatch.setattr(registry, "REGISTRY", (*moved, *registry.REGISTRY))
        return moved

    return install


@pytest.fixture
def made_for_cuda(on_cpu):
    """made_for_cuda(*names) gives the implementations for CUDA of those names: unchanged on a machine with CUDA, else
    moved to the CPU, where Triton's interpreter runs their kernels."""

    def install(*names: str):
        if DEVICE.type == "cpu":
            return on_cpu("cuda", *names)
        return [entry for entry in registry.REGISTRY if entry.devices == ("cuda",) and entry.name in names]

    return install
