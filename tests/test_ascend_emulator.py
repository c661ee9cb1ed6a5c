"""The Ascend emulator: device, operators of torch, strictness, counters, training, and collectives.

Runs on the emulator only: see tests/ascend_emulator/README.md. The fused operators are tested in
test_ascend_emulator_operators.py, what the documents forbid in test_ascend_emulator_limits.py.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import ascend_emulator
import pytest
import torch
from ascend_emulator import aten, counters, environment
from tolerances import eps, loss_near, moved_apart
from torch import nn
from torch.utils.checkpoint import checkpoint

if not ascend_emulator.active():
    pytest.skip("the Ascend emulator is off: make test-npu", allow_module_level=True)

import torch_npu

from ppe_npu.backends.device import ascend_cores, exact_matmul


def python(*arguments, **variables):
    """Runs Python in a child process, which finds the emulator by the environment variables of this one."""
    environ = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environ, timeout=120)


# ---- the device ----

ASK = """
import json, torch
properties = torch.npu.get_device_properties(1)
try:
    torch.empty(2**29, device="npu:1")
except torch.OutOfMemoryError as error:
    told = str(error)
(torch.ones(3, device="npu:1") + 1).sum().item()
print(json.dumps([torch.npu.get_device_name(1), torch.npu.device_count(), properties.total_memory, told]))
"""


def test_chip_memory_and_number_of_devices_can_be_chosen(tmp_path):
    """In a child process, by nothing but the environment; the process also leaves a record of what it ran."""
    chosen = {environment.SOC: "Ascend950PR_9599", environment.MEMORY_GB: "1.5", environment.DEVICES: "2"}
    done = python("-c", ASK, **chosen, **{environment.CALLS: str(tmp_path / "calls")})
    assert done.returncode == 0, done.stderr
    name, devices, memory, told = json.loads(done.stdout)
    assert (name, devices, memory) == ("Ascend950PR_9599", 2, 3 * 2**29)
    assert "Tried to allocate 2.00 GiB" in told
    assert json.loads((tmp_path / "calls").read_text())["aten"]["aten::sum"] == 1


def test_torch_npu_counts_the_cores_that_kernels_are_planned_for():
    """Asks by the names that torch_npu uses; a release that does not count the cores says 0."""
    assert ascend_cores(torch.device("npu")) == ("Ascend910B1", 24, 48)


def test_torch_npu_before_torch_is_said():
    """If torch is not imported first, nothing calls the emulator's entry point."""
    done = python("-c", "import torch_npu, torch; torch.ones(2, device='npu') + 1")
    assert "import torch before torch_npu" in done.stderr


def test_device_memory_is_no_host_memory():
    tensor = torch.arange(6.0).reshape(2, 3).npu()
    assert tensor.device == torch.device("npu:0")
    assert tensor.cpu().tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert torch.empty(2**24, device="npu").isnan().all()  # memory that was never written does not look like zeros
    torch.npu.reset_peak_memory_stats()
    before = torch.npu.max_memory_allocated()
    torch.zeros(2**20, device="npu")
    assert torch.npu.max_memory_allocated() - before >= 2**22


def test_streams_and_events():
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    start.record()
    with torch.npu.stream(torch.npu.Stream()):
        tensor = torch.ones(3, device="npu") * 2
    end.record()
    torch.npu.synchronize()
    assert start.elapsed_time(end) >= 0
    assert tensor.sum().item() == 6


# ---- operators of torch ----

OPERATORS = {
    "in place on a view": lambda x: x.clone()[1].mul_(2),
    "in place seen through a view": lambda x: [y := x.clone(), y[:, 1:].fill_(7), y][2],
    "out": lambda x: torch.add(x, 1, out=torch.empty(0, device=x.device)),
    "into itself": lambda x: [y := x.clone(), torch.mul(y, y, out=y), y][2],
    "transposed": lambda x: x.T.contiguous() @ x,
    "indices": lambda x: x[torch.tensor([2, 0], device=x.device)],
    "mask": lambda x: x[x > 0],
    "index put": lambda x: x.clone().index_put_((torch.tensor([1], device=x.device),), x[0]),
    "sort": lambda x: x.sort(dim=-1, stable=True)[1],
    "topk": lambda x: x.topk(2)[0],
    "split": lambda x: torch.cat([part + 1 for part in x.split(2)]),
    "cumsum": lambda x: x.cumsum(0),
    "cdist": lambda x: torch.cdist(x, x),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "to bf16": lambda x: x.to(torch.bfloat16) * 3,
    "host number": lambda x: x + torch.tensor(2.0),
    "foreach": lambda x: torch._foreach_mul([x, x], 2.0)[1],
    "norm": lambda x: nn.functional.layer_norm(x, x.shape[-1:]),
    "conv": lambda x: nn.functional.conv3d(x.expand(1, 3, 2, -1, -1), torch.ones(4, 3, 2, 2, 2, device=x.device)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_of_torch_are_the_cpus(name):
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    with exact_matmul():
        result = OPERATORS[name](x.npu())
    assert result.device.type == "npu"
    expected = OPERATORS[name](x)
    assert result.dtype == expected.dtype
    assert torch.equal(result.cpu(), expected)


def test_fp32_convolutions_are_in_hf32_until_somebody_turns_it_off(monkeypatch):
    """As on an Ascend: torch.npu.conv.allow_hf32 is on by default. Parity must not depend on it."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 6, generator=generator), torch.randn(4, 3, 2, generator=generator)
    expected = nn.functional.conv1d(x, weight)

    def error(dtype=torch.float32):
        result = nn.functional.conv1d(x.npu().to(dtype), weight.npu().to(dtype)).float().cpu()
        return ((result - expected).square().mean() / expected.square().mean()).sqrt().item()

    monkeypatch.delenv(environment.HF32, raising=False)
    assert torch.npu.conv.allow_hf32
    hf32 = eps(torch.float32) * 2**aten.HF32_DROPPED_BITS  # each of the two inputs is rounded by half of it at most
    assert hf32 / 64 < error() <= hf32
    in_bf16 = error(torch.bfloat16)
    with exact_matmul():
        assert error() == 0
    monkeypatch.setenv(environment.HF32, "0")
    assert error() == 0
    assert error(torch.bfloat16) == in_bf16  # only fp32 is affected


def test_casts_of_torch_npu():
    x = torch.randn(3, 4).npu().requires_grad_()
    cast = torch_npu.npu_dtype_cast(x, torch.bfloat16)
    assert torch.equal(cast.cpu(), x.detach().cpu().bfloat16())
    cast.sum().backward()
    assert torch.equal(x.grad.cpu(), torch.ones(3, 4))
    assert torch.equal(torch_npu.npu_format_cast(x.detach(), 2), x)  # 2: ND, no private format


def test_random_numbers_follow_seed_and_state():
    torch.manual_seed(3)
    first, second = torch.rand(5, device="npu"), torch.rand(5, device="npu")
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(5, device="npu"), first)
    state = torch.npu.get_rng_state()
    dropped = nn.functional.dropout(torch.ones(64, device="npu"), 0.5)
    torch.npu.set_rng_state(state)
    assert torch.equal(nn.functional.dropout(torch.ones(64, device="npu"), 0.5), dropped)
    own = [torch.rand(5, device="npu", generator=torch.Generator("npu").manual_seed(3)) for _ in range(2)]
    assert torch.equal(own[0], first)
    assert torch.equal(own[0], own[1])


def test_gradient_checkpointing_drops_the_same_again():
    x = torch.ones(1000, device="npu", requires_grad=True)
    output = checkpoint(lambda x: nn.functional.dropout(x * 1, 0.5), x, use_reentrant=False)
    output.sum().backward()
    assert torch.equal(x.grad, output.detach())


# ---- strictness ----


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: torch_npu.npu_gelu(x), "aclnnGeluV2 has no emulation"),
        (lambda x: torch_npu.npu_confusion_transpose(x, (1, 0), (8, 4), False), "ConfusionTransposeD has no emulation"),
        (lambda x: torch_npu.npu_mrope(*[x] * 4, 8), "has no emulation"),
        (lambda x: x.mode(), "CPU fallback is disabled"),  # torch_npu has no kernel for it
    ],
)
def test_an_operator_without_emulation_is_an_error(call, named):
    with pytest.raises(RuntimeError, match=named):
        call(torch.randn(4, 8).npu())


def test_counters():
    counters.reset()
    assert counters.npu() == counters.aten() == {}
    x = torch.randn(3, 8).npu().requires_grad_()
    for _ in range(2):
        torch_npu.npu_swiglu(x).sum().backward()
    torch_npu.npu_rms_norm(x.detach(), torch.ones(8).npu())
    assert counters.npu() == {"npu_swiglu": 2, "npu_swiglu_backward": 2, "npu_rms_norm": 1}
    assert counters.aten()["aten::sum"] == 2
    counters.reset()
    with pytest.raises(RuntimeError):
        torch_npu.npu_swiglu(x.T)
    assert counters.npu() == {}  # what was refused did not run


# ---- training ----


def steps(model, optimizer, device):
    model, losses = copy.deepcopy(model).to(device), []
    optimizer = optimizer(model.parameters())
    for step in range(5):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step)).to(device)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, [parameter.detach().cpu() for parameter in model.parameters()]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(0.0), nn.Linear(16, 3))


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_training_is_the_cpus(options):
    def adamw(parameters):
        return torch.optim.AdamW(parameters, lr=1e-2, **options)

    (ours, weights), (losses, expected) = (steps(network(), adamw, device) for device in ("npu", "cpu"))
    assert ours == losses
    assert all(torch.equal(one, other) for one, other in zip(weights, expected))


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_the_fused_adamw_of_torch_npu():
    """It moves all parameters into one piece of memory and leaves views behind."""
    ours, weights = steps(network(), lambda parameters: torch_npu.optim.NpuFusedAdamW(parameters, lr=1e-2), "npu")
    losses, expected = steps(network(), lambda parameters: torch.optim.AdamW(parameters, lr=1e-2), "cpu")
    assert ours == loss_near(losses, layers=1, steps=5)
    for one, other in zip(weights, expected):
        assert (one - other).abs().max() <= moved_apart([1e-2] * 5, weight=other.abs().max().item())


def test_autocast():
    model = network().npu()
    with torch.autocast("npu", torch.bfloat16):
        output = model(torch.randn(2, 8, device="npu"))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_tensors_are_saved_and_loaded(tmp_path):
    torch.save({"x": torch.arange(3).npu()}, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt")["x"].device.type == "npu"
    assert torch.load(tmp_path / "x.pt", map_location="cpu")["x"].tolist() == [0, 1, 2]


# ---- several processes ----


@pytest.mark.parametrize("processes", [2, 4])
def test_collectives(processes):
    """torchrun in the current environment; the script that it runs compares everything itself."""
    script = Path(ascend_emulator.__file__).with_name("collectives.py")
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), str(script))
    done = python(*run, **{environment.DEVICES: ""})
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{processes} ranks agree" in done.stdout
