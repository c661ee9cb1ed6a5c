"""Compiles, without a GPU, every Triton kernel that a call would launch. Run it as a program, outside the interpreter:

    python tests/backends/compile_kernels.py 90       # compute capability 9.0

It calls our functions on tensors without memory and stops at each launch, after Triton has compiled the kernel for
these very arguments, down to machine code. It prints a JSON list with one entry per kernel: its name, the call that
launched it, shared memory in bytes, registers per thread, bytes spilled, and its tensor-core instruction.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ppe_npu.backends.cuda import dpc_knn, group_mean, rotary


class NoGpu:
    """Stands in for the driver: it names the device to compile for."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0


def tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def clustering(frames: int, count: int, channels: int, dtype: torch.dtype) -> None:
    numbers = tensor(frames, dtype=torch.int64)
    dpc_knn.dpc_knn(tensor(frames, count, channels, dtype=dtype), None, numbers, max(1, count // 2), numbers)


def means(frames: int, count: int, channels: int, groups: int, dtype: torch.dtype) -> None:
    labels, counts = tensor(frames, count, dtype=torch.int64), tensor(frames, groups, dtype=torch.int64)
    out = group_mean.group_mean(tensor(frames, count, channels, dtype=dtype).requires_grad_(), labels, counts)
    out.backward(out.detach())


def turning(heads: int, kv_heads: int, length: int, width: int, dtype: torch.dtype) -> None:
    query, key = (
        tensor(1, length, count, width, dtype=dtype).transpose(1, 2).requires_grad_() for count in (heads, kv_heads)
    )
    table = tensor(1, length, width, dtype=dtype)
    rotated = rotary.rotary(query, key, table, table)
    torch.autograd.grad(rotated, (query, key), [part.detach() for part in rotated])


def work() -> dict:
    """The calls whose kernels are compiled, by name."""
    half, full = torch.bfloat16, torch.float32
    return {
        "rotary of Qwen2.5-VL-3B, bf16": lambda: turning(16, 2, 4096, 128, half),
        "means of 32 x 768 x 2048, bf16": lambda: means(32, 768, 2048, 346, half),
        "clustering of 32 x 768 x 2048, bf16": lambda: clustering(32, 768, 2048, half),
        "clustering of 2 x 6000 x 3584, bf16": lambda: clustering(2, 6000, 3584, half),
        "clustering of 3 x 37 x 48, fp16": lambda: clustering(3, 37, 48, torch.float16),
        "clustering of 32 x 768 x 2048, fp32": lambda: clustering(32, 768, 2048, full),
        "clustering of 1 x 6000 x 70, fp32": lambda: clustering(1, 6000, 70, full),
        "means of 3 x 41 x 24, fp32": lambda: means(3, 41, 24, 9, full),
        "rotary of a vision tower, fp32": lambda: turning(16, 16, 1000, 80, full),
    }


def resources(kernel, capability: int) -> dict:
    """The resources that a compiled kernel takes, as the assembler reports them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(kernel.asm["ptx"])
        command = [get_ptxas(capability).path, "-v", f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}"]
        done = subprocess.run([*command, source, "-o", f"{folder}/out"], capture_output=True, text=True, check=True)
    found = {name: int(re.search(rf"(\d+) {words}", done.stderr)[1]) for name, words in
             (("registers", "registers"), ("spilled", "bytes spill stores"))}  # fmt: skip
    products = re.search(r"(wgmma\.mma_async|mma\.sync)", kernel.asm["ptx"])
    return found | {"shared": kernel.metadata.shared, "products": products[1] if products else None}


def main(capability: int) -> list[dict]:
    driver.set_active(NoGpu(capability))
    launch, made, calls = JITFunction.run, {}, {"now": ""}

    def compile_only(self, *args, grid, warmup, **options):
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        made.setdefault((self.fn.__name__, kernel.hash), (calls["now"], kernel))

    JITFunction.run = compile_only
    for name, call in work().items():
        calls["now"] = name
        call()
    return [{"kernel": key[0], "call": call} | resources(kernel, capability) for key, (call, kernel) in made.items()]


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
