"""Runs Huawei's compiler without a device: the parts of triton-ascend that need one are replaced, and launches compile.

triton-ascend translates a kernel to MLIR (Triton IR, then linalg). `bishengir-compile` of ascendnpu-ir then fuses and
tiles it, plans its memory and inserts waits, up to hivmc, the only tool that comes with CANN alone. A stand-in for
hivmc keeps the IR that it receives. So a kernel that needs more memory than a chip has fails here as it does there.

    with recorded() as kernels:
        dpc_knn(tensor without memory, ...)      # bishengir-compile has not run yet
    final = compiled(kernels[0].linalg, "Ascend910B1", "1.2.0")
"""

import contextlib
import functools
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(sys.prefix)
# The compiler's two releases; the older one is in a separate folder (scripts/environment.py).
COMPILERS = {
    "1.1.0": HERE / "ascendnpu-ir-1.1.0",
    "1.2.0": HERE / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages",
}
HIVMC = """#!/bin/sh
if [ "$1" = --version ]; then echo hivmc 1.2.0; exit 0; fi
for word; do [ -f "$word" ] && cp "$word" "$HIVM_KEPT"; done
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2.o"; shift; done
"""


class Refused(Exception):
    """The compiler rejects a kernel. The message is the compiler's."""


@dataclass
class Kernel:
    """One launch.

    Attributes:
        name: the kernel's name. constants: its constexpr arguments. linalg: the IR that the front end made.
        arguments: the other arguments of the launch, in order. grid: how many programs.
    """

    name: str
    constants: dict[str, Any]
    linalg: str
    arguments: list = field(repr=False)
    grid: tuple


class _Utils:
    """The properties of a device that the front end reads: its name and the number of its cores."""

    def get_arch(self) -> str:
        return "Ascend910B1"

    def get_aicore_num(self) -> int:
        return 24

    def get_device_properties(self, _device) -> dict:
        return {"max_shared_mem": 1, "num_aicore": 24, "num_vectorcore": 48}


class _Driver:
    utils = _Utils()

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("npu", "Ascend910B1", 0)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device=0) -> int:
        return 0

    def get_benchmarker(self):
        return None

    def get_device_interface(self):
        return None


@contextlib.contextmanager
def recorded(then=None) -> Iterator[list[Kernel]]:
    """Launches run only the front end and are collected in the list. `then(kernel)` is called at each."""
    from triton.backends import backends
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    # Importing the module by name would give another copy than the one that compiles.
    inside = backends["ascend"].compiler.add_stages.__globals__
    found: list[Kernel] = []
    launch, utils, last = JITFunction.run, inside["NPUUtils"], inside["linalg_to_bin_enable_npu_compile_A2_A3"]

    def no_binary(linalg, metadata, _options):
        inside["_parse_linalg_metadata"](linalg, metadata)
        return b"none"

    def record(self, *arguments, grid, warmup=False, **options):
        made = launch(self, *arguments, grid=grid, warmup=True, debug=False, **options)
        linalg = made.asm["ttadapter"]
        linalg = linalg if isinstance(linalg, str) else linalg.decode()
        given = dict(zip(self.arg_names, arguments)) | options
        constants = {p.name: given[p.name] for p in self.params if p.is_constexpr}
        folded = {self.arg_names[k] if isinstance(k, int) else k for k in made.src.constants}
        live = [given[p.name] for p in self.params if p.name not in constants and p.name not in folded]
        kernel = Kernel(self.fn.__name__, constants, linalg, live, tuple(grid))
        found.append(kernel)
        if then is not None:
            then(kernel)

    driver.set_active(_Driver())
    inside["NPUUtils"], inside["linalg_to_bin_enable_npu_compile_A2_A3"] = _Utils, no_binary
    JITFunction.run = record
    try:
        yield found
    finally:
        JITFunction.run = launch
        inside["NPUUtils"], inside["linalg_to_bin_enable_npu_compile_A2_A3"] = utils, last


@functools.cache
def compiled(linalg: str, target: str, release: str) -> str:
    """The IR that a release of the compiler would hand to hivmc for a chip.

    Raises:
        Refused: the compiler rejects the kernel, for example because it needs more memory than the chip has.
    """
    with tempfile.TemporaryDirectory() as folder:
        stand_in = Path(folder, "hivmc")
        stand_in.write_text(HIVMC)
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IEXEC)
        source, kept = Path(folder, "kernel.mlir"), Path(folder, "kept.mlir")
        source.write_text(re.sub(r', mix_mode\s*=\s*"[^"]*"', "", linalg))
        tools = COMPILERS[release] / "ascendnpuir" / "bin"
        environment = os.environ | {"PATH": f"{tools}:{folder}:{os.environ['PATH']}", "HIVM_KEPT": str(kept)}
        done = subprocess.run(
            [tools / "bishengir-compile", source, f"--target={target}", "--enable-auto-multi-buffer=True",
             "--enable-auto-bind-sub-block=True", "--enable-hfusion-compile=true", "--enable-hivm-compile=true",
             "--enable-triton-kernel-compile=true", "-o", f"{folder}/kernel"],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        if done.returncode or not kept.exists():
            said = [line for line in done.stderr.splitlines() if re.search("error|overflow|Unsupported", line)]
            raise Refused("; ".join(line[:300] for line in said[:3]) or done.stderr[-800:] or "no IR was handed on")
        return kept.read_text()
