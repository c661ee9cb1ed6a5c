import importlib
import sys
from dataclasses import replace

import pytest
import torch
from kernel_device import DEVICE

from ppe_npu.backends import dispatch, registry

# The tensors are tiny: threads would only wait for each other, for seconds where the machine is busy with other work.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_dispatch():
    """No test sees what another one chose, logged, or found to be importable."""
    dispatch.reset()
    registry._import_problem.cache_clear()
    yield
    dispatch.reset()
    registry._import_problem.cache_clear()


@pytest.fixture
def on_cpu(monkeypatch):
    """on_cpu(kind, *names, package=module): puts `module` in the place of a vendor's package, and moves to the
    CPU, ahead of all others, the implementations (of those names, or all) that are made for devices of `kind`."""

    def install(kind: str, *names: str, **packages):
        if "torch_npu" in sys.modules:
            importlib.import_module("torch._dynamo")  # which the real one patches when it is loaded: not a stand-in
        for name, module in packages.items():
            monkeypatch.setitem(sys.modules, name, module)
        made = [entry for entry in registry.REGISTRY if entry.devices == (kind,) and (not names or entry.name in names)]
        moved = [replace(entry, devices=("cpu",)) for entry in made]
        monkeypatch.setattr(registry, "REGISTRY", (*moved, *registry.REGISTRY))
        return moved

    return install


@pytest.fixture
def made_for_cuda(on_cpu):
    """made_for_cuda(*names): the implementations for CUDA of those names, where Triton's kernels run in these tests: on
    a CUDA machine as they are, else on the CPU."""

    def install(*names: str):
        if DEVICE.type == "cpu":
            return on_cpu("cuda", *names)
        return [entry for entry in registry.REGISTRY if entry.devices == ("cuda",) and entry.name in names]

    return install
