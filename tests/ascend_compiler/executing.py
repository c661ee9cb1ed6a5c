"""Executes the IR that triton-ascend's front end makes of a kernel on this CPU, to get its results without a device.

The IR is linalg on tensors and memrefs, which MLIR's standard passes lower to machine code of any kind. The results do
not reflect what Huawei's compiler does with it afterwards (fusion, buffers, waits). All tools are there already:
bishengir-opt of the compiler's wheel has these passes, the LLVM inside triton-ascend supports every CPU that it was
built on, and gcc links.
"""

import ctypes
import functools
import hashlib
import itertools
import platform
import re
import subprocess
import tempfile
from pathlib import Path

from compiling import COMPILERS, Kernel

OPT = COMPILERS["1.2.0"] / "ascendnpuir" / "bin" / "bishengir-opt"
LOWER = [
    "--convert-elementwise-to-linalg", "--linalg-generalize-named-ops", "--eliminate-empty-tensors",
    "--empty-tensor-to-alloc-tensor", "--one-shot-bufferize=allow-return-allocs-from-loops=true",
    "--buffer-deallocation-pipeline", "--convert-linalg-to-loops", "--lower-affine", "--convert-scf-to-cf",
    "--expand-strided-metadata", "--lower-affine", "--convert-math-to-llvm", "--convert-arith-to-llvm",
    "--convert-math-to-libm", "--convert-index-to-llvm", "--finalize-memref-to-llvm", "--convert-func-to-llvm",
    "--convert-cf-to-llvm", "--convert-arith-to-llvm", "--reconcile-unrealized-casts",
]  # fmt: skip
# Functions that the lowered code calls: a copy between two memrefs of any strides, and the rounding of fp32 to bf16.
RUNTIME = r"""
#include <stdint.h>
#include <string.h>
typedef struct { int64_t rank; void *memref; } Unranked;
static void copy(int64_t rank, int64_t size, char *from, char *to, int64_t *lengths, int64_t *a, int64_t *b) {
  if (rank == 0) { memcpy(to, from, size); return; }
  for (int64_t i = 0; i < lengths[0]; i++)
    copy(rank - 1, size, from + i * a[0] * size, to + i * b[0] * size, lengths + 1, a + 1, b + 1);
}
void memrefCopy(int64_t size, Unranked *source, Unranked *target) {
  /* A memref is: allocated, aligned, offset, lengths, strides. */
  int64_t rank = source->rank, *a = source->memref, *b = target->memref;
  copy(rank, size, (char *)a[1] + a[2] * size, (char *)b[1] + b[2] * size, a + 3, a + 3 + rank, b + 3 + rank);
}
_Float16 __truncsfbf2(float value) {
  uint32_t bits; uint16_t half; _Float16 result;
  memcpy(&bits, &value, 4);
  half = (bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  memcpy(&result, &half, 2);
  return result;
}
"""


def execute(kernel: Kernel) -> None:
    """Runs every program of a launch, one after another, on the CPU tensors that it was launched with."""
    inside = re.search(r"func\.func @\w+\((.*?)\) attributes", kernel.linalg, re.S)[1]
    types = [re.sub(r"\{.*?\}", "", part).strip().rstrip(", ") for part in re.findall(r"%arg\d+: ([^%]+)", inside)]
    types = types[2:-6]  # without locks, workspace, and the six numbers that describe the grid
    assert len(types) == len(kernel.arguments), (kernel.name, types)
    empty = [item for _ in range(2) for item in _memref(0, 0)]
    given = [item for kind, value in zip(types, kernel.arguments) for item in _argument(kind, value)]
    grid = [*kernel.grid, 1, 1][:3]
    function = getattr(_library(kernel.linalg), kernel.name)
    for z, y, x in itertools.product(*map(range, reversed(grid))):
        function(*empty, *given, *map(ctypes.c_int32, (*grid, x, y, z)))


def _argument(kind: str, value) -> list:
    if kind.startswith("memref"):
        return _memref(value.data_ptr(), value.untyped_storage().nbytes() // value.element_size())
    return [{"i32": ctypes.c_int32, "i64": ctypes.c_int64, "f32": ctypes.c_float}[kind](value)]


def _memref(address: int, length: int) -> list:
    """A memref of one dimension in LLVM's layout: allocated, aligned, offset, length, stride."""
    return [ctypes.c_void_p(address), ctypes.c_void_p(address), *map(ctypes.c_int64, (0, length, 1))]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    Path(folder.name, "runtime.c").write_text(RUNTIME)
    return folder


@functools.cache
def _library(linalg: str) -> ctypes.CDLL:
    linalg = "\n".join(line for line in linalg.splitlines() if "annotation.mark" not in line)
    folder = Path(_folder().name)
    name = hashlib.sha256(linalg.encode()).hexdigest()[:16]
    source, lowered, machine, library = (folder / f"{name}{end}" for end in (".mlir", ".low.mlir", ".o", ".so"))
    source.write_text(linalg)
    _run(OPT, "--allow-unregistered-dialect", source, *LOWER, "-o", lowered)
    machine.write_bytes(_machine_code(lowered))
    _run("gcc", "-O1", "-shared", "-fPIC", folder / "runtime.c", machine, "-lm", "-o", library)
    return ctypes.CDLL(library)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr[:2000]}"


def _machine_code(lowered: Path) -> bytes:
    """An object file for this CPU from MLIR in LLVM's dialect, without fused multiply-add."""
    from triton._C.libtriton import ir, llvm

    context = ir.context()
    ir.load_dialects(context)
    llvm.init_targets()
    made = str(llvm.to_module(ir.parse_mlir_module(str(lowered), context), llvm.context()))
    return llvm.translate_to_asm(made, f"{platform.machine()}-unknown-linux-gnu", "generic", "", [], False, True)
