"""Makes Triton's interpreter run our kernels and Liger's on the CPU; does nothing where they are compiled.

What it lacks, and is put in here, for tests only:
* tl.dot of bf16 multiplies the bits as integers: bf16 is widened to fp32 before, as tensor cores do.
* Python floats stay floats, which have no `.to`: they become fp32 scalars, as the compiler takes them.
* libdevice's functions give None: Liger's rsqrt is written in Triton.
"""

import functools
import importlib

import numpy as np
import triton
import triton.language as tl
import triton.runtime.interpreter as interpreter
from kernel_device import DEVICE


@functools.cache
def repair() -> None:
    """Puts in what is missing, once a process."""
    if DEVICE.type != "cpu":
        return
    convert, dot = interpreter._implicit_cvt, interpreter.InterpreterBuilder.create_dot

    def implicit(argument):
        if isinstance(argument, float):
            return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)
        return convert(argument)

    def wide(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    interpreter._implicit_cvt = implicit
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, wide(a), wide(b), *rest)


@functools.cache
def repair_liger() -> None:
    """The same for liger-kernel, which is imported."""
    repair()
    if DEVICE.type == "cpu":
        importlib.import_module("liger_kernel.ops.rms_norm").rsqrt = _rsqrt


@triton.jit
def _rsqrt(x):
    return 1.0 / tl.sqrt(x)
