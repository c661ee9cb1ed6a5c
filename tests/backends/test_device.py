"""resolve() finds the devices that exist and says in one line why another cannot be used; the rest of device.py on the
CPU."""

import contextlib
import importlib.machinery
import random
import sys
import types

import numpy
import pytest
import torch

from ppe_npu.backends import DeviceError, device

CPU = torch.device("cpu")
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
no_npu = pytest.mark.skipif("torch_npu" in sys.modules, reason="torch_npu is loaded")


def _stub_torch_npu(monkeypatch, devices: int):
    """An importable torch_npu that sees `devices` NPUs."""
    stub = types.ModuleType("torch_npu")
    stub.__spec__ = importlib.machinery.ModuleSpec("torch_npu", None)
    monkeypatch.setitem(sys.modules, "torch_npu", stub)
    runtime = types.SimpleNamespace(is_available=lambda: devices > 0, device_count=lambda: devices)
    monkeypatch.setattr(torch, "npu", runtime, raising=False)


def test_cpu_can_always_be_had():
    assert device.resolve("cpu") == CPU
    assert device.resolve(" CPU ") == CPU


@no_cuda
@no_npu
def test_auto_is_the_cpu_where_there_is_nothing_else():
    assert device.resolve() == CPU


@no_npu
def test_auto_prefers_an_npu_to_cuda(monkeypatch):
    _stub_torch_npu(monkeypatch, devices=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "device", lambda name: name)  # torch accepts "npu" only after torch_npu has renamed it
    assert device.resolve("auto") == "npu"
    assert device.resolve("npu:1") == "npu:1"
    with pytest.raises(DeviceError, match="there are 2 of kind npu; use an index below 2"):
        device.resolve("npu:2")


@no_npu
def test_auto_passes_over_torch_npu_without_an_npu_and_says_so(monkeypatch, caplog):
    _stub_torch_npu(monkeypatch, devices=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.resolve("auto").type == "cuda"
    assert "no NPU can be used" in caplog.text


@no_npu
def test_an_npu_without_torch_npu_is_an_error_with_the_remedy():
    with pytest.raises(
        DeviceError, match=r"'npu:0' .* torch_npu is not installed; .* install the one that matches torch .* EMULATE=1"
    ) as caught:
        device.resolve("npu:0")
    assert "\n" not in str(caught.value)


@no_npu
def test_an_npu_that_is_not_there_is_an_error_with_the_remedy(monkeypatch):
    _stub_torch_npu(monkeypatch, devices=0)
    with pytest.raises(DeviceError, match=r"sees no NPU; .* check npu-smi info .* EMULATE=1"):
        device.resolve("npu")


@no_npu
def test_a_torch_npu_that_cannot_load_its_libraries_is_an_error_with_the_remedy(monkeypatch, tmp_path):
    (tmp_path / "torch_npu.py").write_text("raise OSError('libhccl.so: cannot open shared object file\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DeviceError,
        match=r"cannot be imported \(libhccl.so: .* file\); on an .* source CANN's set_env.sh, .* EMULATE=1",
    ):
        device.resolve("npu")
    assert device.resolve("auto").type in ("cuda", "cpu")


@no_cuda
def test_cuda_that_is_not_there_is_an_error():
    with pytest.raises(DeviceError, match="'cuda' cannot be used: "):
        device.resolve("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cpu:x", "npu:-1", "tpu:0", "cpu:00", "cpu:\u0660", "x" * 10**5])
def test_unknown_names_are_errors(name):
    with pytest.raises(DeviceError, match="use auto, npu, cuda, cpu") as caught:
        device.resolve(name)
    assert len(str(caught.value)) < 300
    assert issubclass(DeviceError, ValueError)


def test_the_cpu_has_one_index():
    assert device.resolve("cpu:0").type == "cpu"
    with pytest.raises(DeviceError, match="below 1"):
        device.resolve("cpu:1")


def test_dtypes_of_the_cpu():
    assert all(device.supports(CPU, dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16))
    assert not device.supports(CPU, torch.int64)


@pytest.mark.parametrize("bf16", [True, False])
def test_dtypes_of_an_npu(monkeypatch, bf16):
    monkeypatch.setattr(torch, "npu", types.SimpleNamespace(is_bf16_supported=lambda: bf16), raising=False)
    npu = types.SimpleNamespace(type="npu")
    assert device.supports(npu, torch.bfloat16) is bf16
    assert not device.supports(npu, torch.float64)
    assert device.supports(npu, torch.float16)


def test_seed_everything_seeds_all_three_generators():
    def draw():
        return random.random(), numpy.random.rand(), torch.rand(()).item()  # noqa: NPY002

    device.seed_everything(5)
    first = draw()
    device.seed_everything(5)
    assert draw() == first
    device.seed_everything(6)
    assert all(one != other for one, other in zip(draw(), first))
    with pytest.raises(ValueError, match="outside"):
        device.seed_everything(2**32)


def test_what_the_cpu_does_not_have():
    device.reset_peak_memory(CPU)
    device.synchronize(CPU)
    assert device.peak_memory(CPU) is None


def test_memory_of_a_device_is_asked_of_its_runtime(monkeypatch):
    calls = []
    runtime = types.SimpleNamespace(
        max_memory_allocated=lambda device: 123, reset_peak_memory_stats=calls.append, synchronize=calls.append
    )
    monkeypatch.setattr(torch, "npu", runtime, raising=False)
    npu = types.SimpleNamespace(type="npu")
    device.reset_peak_memory(npu)
    device.synchronize(npu)
    assert device.peak_memory(npu) == 123
    assert calls == [npu, npu]


def test_names_for_torch_distributed_and_transformers():
    kinds = [types.SimpleNamespace(type=kind) for kind in ("npu", "cuda", "cpu")]
    assert [device.process_group_backend(kind) for kind in kinds] == ["hccl", "nccl", "gloo"]
    assert {device.fused_adamw_name(kind) for kind in kinds} == {"adamw_torch"}
    fused = [device.fused_adamw_name(kind, fused=True) for kind in kinds]
    assert fused == ["adamw_torch_npu_fused", "adamw_torch_fused", "adamw_torch_fused"]


def test_describe_names_the_device_and_torch():
    facts = device.describe(CPU)
    assert facts["kind"] == "cpu"
    assert facts["torch"] == torch.__version__
    assert "threads" in facts["name"]


def test_describe_names_an_npus_software(monkeypatch):
    versions = {"CANN": "8.5.0", "DRIVER": ""}
    utils = types.SimpleNamespace(get_cann_version=lambda module: versions[module])
    stub = types.SimpleNamespace(__version__="2.9.0", npu=types.SimpleNamespace(utils=utils))
    monkeypatch.setitem(sys.modules, "torch_npu", stub)
    monkeypatch.setattr(torch, "npu", types.SimpleNamespace(get_device_name=lambda device: "Ascend910B"), raising=False)
    facts = device.describe(types.SimpleNamespace(type="npu"))
    assert facts["name"] == "Ascend910B"
    assert facts["runtime"] == "torch_npu 2.9.0, CANN 8.5.0"
    assert "driver" not in facts  # an unknown version, as in a container that does not see the driver's files


def _precisions():
    """torch's legacy precision settings (None while they disagree with the new ones, which torch allows), then the new
    ones."""
    modules = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    modules += (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)
    legacy = []
    for get in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            legacy.append(get())
        except RuntimeError:
            legacy.append(None)
    return (*legacy, *(module.fp32_precision for module in modules))


@pytest.fixture
def _restore_precision():
    before = _precisions()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before[2], before[5]
    torch.backends.cudnn.conv.fp32_precision, torch.backends.mkldnn.conv.fp32_precision = before[3], before[6]


@pytest.mark.usefixtures("_restore_precision")
@pytest.mark.parametrize("setting", ["nothing", "legacy flag", "legacy name", "new name", "convolutions"])
def test_exact_matmul_turns_reduced_precision_off_and_restores_it(setting):
    if setting == "legacy flag":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif setting == "legacy name":
        torch.set_float32_matmul_precision("medium")
    elif setting == "new name":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    elif setting == "convolutions":
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision = "tf32", "ieee"
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
    before = _precisions()
    with contextlib.suppress(KeyError), device.exact_matmul():
        assert torch.backends.cuda.matmul.allow_tf32 is False  # raises if the legacy and the new setting disagree
        legacy = before[1] and False  # None stays: a setting that torch cannot report is left alone
        assert _precisions() == ("highest", legacy, "ieee", "ieee", "ieee", "ieee", "ieee")
        raise KeyError
    assert _precisions() == before


def test_exact_matmul_turns_hf32_off_and_restores_it(monkeypatch):
    for products, convolutions in ((True, True), (False, True), (True, False), (False, False)):
        matmul, conv = (types.SimpleNamespace(allow_hf32=allowed) for allowed in (products, convolutions))
        monkeypatch.setattr(torch, "npu", types.SimpleNamespace(matmul=matmul, conv=conv), raising=False)
        with device.exact_matmul():
            assert (matmul.allow_hf32, conv.allow_hf32) == (False, False)
        assert (matmul.allow_hf32, conv.allow_hf32) == (products, convolutions)


@pytest.mark.ci
def test_a_graph_is_traced_where_products_keep_fp32_and_breaks_elsewhere():
    def product(x):
        with device.exact_matmul():
            return x @ x

    x = torch.arange(9.0).view(3, 3)
    before = torch.get_float32_matmul_precision()
    try:
        torch._dynamo.reset()
        assert torch.equal(torch.compile(product, backend="eager", fullgraph=True)(x), x @ x)
        torch.set_float32_matmul_precision("high")
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"fp32 products are set to fewer bits: call .* first"):
            torch.compile(product, backend="eager", fullgraph=True)(x)
        assert torch.equal(torch.compile(product, backend="eager")(x), x @ x)
    finally:
        torch.set_float32_matmul_precision(before)
        torch._dynamo.reset()
