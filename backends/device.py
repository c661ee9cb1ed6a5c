"""The only module that distinguishes NPU, CUDA and CPU.

Everything that depends on the kind of device is decided here: supported dtypes, seeds, clocks, peak memory, the process
group's backend, the optimizer's name in transformers, and the description of the device in reports. finding.py resolves
the names of devices.
"""

import contextlib
import functools
import math
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ppe_npu.backends.compiling import traced_once
from ppe_npu.backends.finding import KINDS as KINDS  # re-exported: callers use device.KINDS
from ppe_npu.backends.finding import DeviceError
from ppe_npu.backends.finding import resolve as resolve
from ppe_npu.backends.precision import exact_matmul as exact_matmul
from ppe_npu.errors import InputError
from ppe_npu.utils.launched import check_launched, environment_number

_CYCLES = 2_500_000  # per millisecond, not less than a GPU's clock has


def _runtime(device: torch.device) -> Any:
    """torch.npu or torch.cuda; None for the CPU, which has neither streams nor an allocator with statistics."""
    return getattr(torch, device.type) if device.type in ("npu", "cuda") else None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrix products in `dtype` run on `device`. An NPU has no fp64; support of bf16 depends on the device."""
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        return False
    if dtype is torch.bfloat16 and device.type != "cpu":
        return bool(_runtime(device).is_bf16_supported())
    return not (dtype is torch.float64 and device.type == "npu")


def too_old(device: torch.device) -> bool:
    """Whether this is CUDA below compute capability 8.0, where neither flash attention nor our Triton kernels run."""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).major < 8


def on_cpu(device: torch.device) -> bool:
    """Whether work runs on the host itself: its calls are synchronous, and its memory is the host's."""
    return device.type == "cpu"


def asks_freely(device: torch.device) -> bool:
    """Whether the host may read computed values: on an accelerator, reading waits for all queued work."""
    return device.type == "cpu" and not torch.compiler.is_compiling()  # there are no values while a graph is traced


def runs_flash_attention(device: torch.device) -> bool:
    """Whether the flash kernels that come with torch run on `device`: CUDA, compute capability 8.0 or later."""
    return device.type == "cuda" and not too_old(device)


def fuses_few_key_heads(device: torch.device) -> bool:
    """Whether all of torch's fused attention takes fewer key than query heads; on CUDA only flash attention does."""
    return device.type != "cuda"


def takes_borders(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels for packed segments take the borders as a tensor, as flash attention on CUDA does."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)


def takes_host_lists(device: torch.device) -> bool:
    """Whether kernels for packed segments take the borders as a list on the host, as those of an NPU do."""
    return device.type == "npu"


def triton_problem(device: torch.device, shared_bytes: int = 0) -> str | None:
    """Why a Triton kernel that takes `shared_bytes` of shared memory per block cannot run on `device`, or None.

    A CPU has no such limits: there Triton's interpreter runs the kernel.
    """
    if device.type != "cuda":
        return None
    if too_old(device):
        return "the Triton kernels are made for compute capability 8.0 and later"
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks the field
    if shared_bytes > properties.shared_memory_per_block_optin:
        return "the Triton kernel needs more shared memory than the device has"
    return None


def ascend_cores(device: torch.device) -> tuple[str, int, int] | None:
    """(name of the chip, cube cores, vector cores) of an NPU, 0 where torch_npu reports no number; None elsewhere."""
    if device.type != "npu":
        return None
    runtime = _runtime(device)
    properties = runtime.get_device_properties(device)
    cores = (int(getattr(properties, name, 0)) for name in ("cube_core_num", "vector_core_num"))
    return runtime.get_device_name(device), *cores


def ascend_triton_problem(device: torch.device) -> str | None:
    """Why Triton kernels cannot be compiled for an NPU here, or None; on a CPU Triton's interpreter runs them."""
    if device.type != "npu":
        return None
    from triton.backends import backends

    return None if "ascend" in backends else "the triton that is installed is not triton-ascend"


def uploaded_once(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Decorator for functions that upload numbers from the host. They run once for the same arguments, because an
    upload makes the host wait for the device; outside inference mode, because the tensor would keep the mode of the
    first caller; and while torch.compile traces, because the upload would otherwise be part of the graph."""
    kept = functools.lru_cache(maxsize=64)(torch.inference_mode(False)(make))

    @traced_once
    @functools.wraps(make)
    def uploaded(*arguments):
        return kept(*arguments)

    return uploaded


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which `device` is the current one of its kind, CUDA or NPU; it does nothing on a CPU.

    Triton launches kernels, and torch.Event records, on the current device, which may differ from the tensors' device.
    torch.cuda.device_of would break the graph under torch.compile.
    """
    if device.type == "cuda":
        return torch.cuda.device(device)
    return _runtime(device).device(device) if device.type == "npu" else contextlib.nullcontext()


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch on every device. `seed`: 0 <= seed < 2**32 (NumPy's range), else InputError."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} is outside [0, 2**32), the range that NumPy accepts; use a smaller one")
    import numpy

    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002 - the legacy global state is what transformers' and users' code draws from
    torch.manual_seed(seed)  # seeds CUDA and, where torch_npu is loaded, the NPU as well


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that torch's allocator held on `device` since `reset_peak_memory`; None on the CPU."""
    runtime = _runtime(device)
    return None if runtime is None else int(runtime.max_memory_allocated(device))


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement for `peak_memory`; does nothing on the CPU."""
    runtime = _runtime(device)
    if runtime is not None:
        runtime.reset_peak_memory_stats(device)


def release_memory(device: torch.device) -> None:
    """Frees the unused memory that torch's allocator caches, after an allocation failed; does nothing on the CPU."""
    runtime = _runtime(device)
    if runtime is not None:
        runtime.empty_cache()


def synchronize(device: torch.device) -> None:
    """Waits until `device` has done all queued work, so that a clock can be read; does nothing on the CPU."""
    runtime = _runtime(device)
    if runtime is not None:
        runtime.synchronize(device)


def process_group_backend(device: torch.device) -> str:
    """torch.distributed's backend for `device`: hccl, nccl or gloo."""
    return {"npu": "hccl", "cuda": "nccl"}.get(device.type, "gloo")


def reduces_float64(device: torch.device) -> bool:
    """Whether processes can sum fp64 numbers on the device. torch_npu's HCCL can from Ascend 950 on."""
    return device.type != "npu" or _runtime(device).get_device_name(device).startswith("Ascend95")


def process_count() -> int:
    """How many processes torchrun (or another launcher) has started for this job; 1 without one."""
    return environment_number("WORLD_SIZE", 1)


def process_rank() -> int:
    """The rank of this process in the job; 0 without a launcher.

    Raises:
        InputError: the launcher's environment variables are invalid or contradict each other.
    """
    check_launched()
    return environment_number("RANK", 0)


def of_this_process(device: torch.device) -> torch.device:
    """The device that this process works on: torchrun's n-th process on a machine gets the n-th device of the kind.

    Raises:
        DeviceError: there are fewer devices than processes on this machine.
    """
    runtime = _runtime(device)
    if runtime is None or device.index is not None or process_count() == 1:
        return device
    index, there = environment_number("LOCAL_RANK", 0), runtime.device_count()
    if index >= there:
        raise DeviceError(
            f"process {index} of this machine has no {device.type}: there are {there}; start one process per device"
        )
    runtime.set_device(index)
    return torch.device(device.type, index)


def wait_for_all() -> None:
    """Waits until every process of the job gets here; does nothing in a job of one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def fused_adamw_name(device: torch.device, *, fused: bool = False) -> str:
    """The `optim` value for transformers' TrainingArguments.

    "adamw_torch" unless `fused` is asked for: NpuFusedAdamW does not allow parameters to move after it was built, as
    offloading and some FSDP setups do. Fused is "adamw_torch_npu_fused" on an NPU, else "adamw_torch_fused".
    """
    if not fused:
        return "adamw_torch"
    return "adamw_torch_npu_fused" if device.type == "npu" else "adamw_torch_fused"


def has_fused_adamw(device: torch.device) -> bool:
    """Whether torch.optim.AdamW(fused=True) has a worthwhile kernel for `device` in torch itself: on CUDA."""
    return device.type == "cuda"


def keeps_cleared_gradients(device: torch.device) -> bool:
    """Whether the device's fused AdamW still uses gradients that the model has cleared, as NpuFusedAdamW does."""
    return device.type == "npu"


def trains_4_bits(device: torch.device) -> bool:
    """Whether bitsandbytes trains adapters on 4-bit weights on `device`."""
    return device.type == "cuda"


def times_itself(device: torch.device) -> bool:
    """Whether torch can delay the device and then time the queued work by events: on CUDA."""
    return device.type == "cuda"


def delay(device: torch.device, milliseconds: float) -> None:
    """Queues a wait of at least that long on a device that `times_itself`; it must be the current one."""
    _runtime(device)._sleep(math.ceil(milliseconds * _CYCLES))


def cache_bytes(device: torch.device) -> int:
    """The size of the cache between the cores and the memory of a device that `times_itself`."""
    return _runtime(device).get_device_properties(device).L2_cache_size


class Stopwatch:
    """Measures how long parts of the work take on their device, without making the host wait. A stretch lasts from
    construction to mark(), the next one from the second mark() to the third, and so on; `milliseconds` is their sum. It
    is NaN if a stretch was traced by torch.compile, where there is no clock."""

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[Any] = []
        self._traced = False
        self.mark()

    def mark(self) -> None:
        """Begin or end a stretch."""
        if torch.compiler.is_compiling():
            self._traced = True
        elif self._device.type == "cpu":
            self._marks.append(time.perf_counter())
        else:
            event = torch.Event(self._device, enable_timing=True)
            with current(self._device):  # torch.Event itself uses only the kind of its device
                event.record()
            self._marks.append(event)

    @property
    def milliseconds(self) -> float:
        if self._traced:
            return float("nan")
        stretches = zip(self._marks[::2], self._marks[1::2])
        if self._device.type == "cpu":
            return sum(end - start for start, end in stretches) * 1e3
        self._marks[-1].synchronize()
        return sum(start.elapsed_time(end) for start, end in stretches)


def describe(device: torch.device) -> dict[str, str]:
    """Facts about `device` for reports: keys "kind", "name", "torch", and "runtime" and "driver" where known."""
    facts = {"kind": device.type, "name": _cpu_name(), "torch": torch.__version__}
    if device.type == "cuda":
        name, driver = torch.cuda.get_device_name(device), _first_line("/proc/driver/nvidia/version")
        facts |= {"name": name, "runtime": f"CUDA {torch.version.cuda}", "driver": driver}
    if device.type == "npu":
        import torch_npu

        cann, driver = (torch_npu.npu.utils.get_cann_version(module=part) for part in ("CANN", "DRIVER"))
        facts |= {"name": _runtime(device).get_device_name(device), "driver": driver}
        facts["runtime"] = f"torch_npu {torch_npu.__version__}" + (f", CANN {cann}" if cann else "")
    return {key: value for key, value in facts.items() if value}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else ()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads"


def _first_line(path: str) -> str:
    return Path(path).read_text().splitlines()[0].strip() if Path(path).exists() else ""
