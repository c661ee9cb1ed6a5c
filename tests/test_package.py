"""Importing the package: what it loads, and what it must not."""

import subprocess
import sys

HEAVY = ("transformers", "av", "matplotlib", "torchvision", "accelerate")
DEVICE_PACKAGES = ("torch_npu", "flash_attn", "triton", "mindspeed", "liger_kernel")


def loaded_after(statement: str) -> set[str]:
    code = f"import torch, sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_is_light_and_loads_no_device_package():
    assert not loaded_after("import ppe_npu; ppe_npu.CompressionConfig.preset('ppe')") & {*HEAVY, *DEVICE_PACKAGES}


def test_compress_loads_no_device_package():
    assert not loaded_after("import ppe_npu; ppe_npu.compress, ppe_npu.restore") & {*HEAVY, *DEVICE_PACKAGES}


def test_public_names():
    import ppe_npu

    assert {"CompressionConfig", "compress", "restore", "__version__"} == set(ppe_npu.__all__)
    for name in ppe_npu.__all__:
        assert getattr(ppe_npu, name)
