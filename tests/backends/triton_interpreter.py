"""Makes Triton's interpreter run our kernels and Liger's on the CPU; does nothing if they are compiled.

It corrects these faults of the interpreter, for tests only:
* tl.dot of bf16 multiplies the bits as integers. Here bf16 is widened to fp32 first, as tensor cores do.
* tl.dot multiplies with NumPy's BLAS, which on some machines rounds by place. Here sums are taken one by one, so that a
  product has the same bits in every row and column, as on a GPU.
* Python floats stay floats, which have no `.to`. Here they become fp32 scalars, as the compiler treats them.
* libdevice's functions return None. Here Liger's rsqrt is written in Triton.
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
    """Apply the corrections, once per process."""
    if DEVICE.type != "cpu":
        return
    convert = interpreter._implicit_cvt

    def implicit(argument):
        if isinstance(argument, float):
            return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)
        return convert(argument)

    def wide(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data.astype(np.float32)
        return (handle.data.astype(np.uint32) << 16).view(np.float32)

    def dot(_, a, b, sums, *precision):
        products = wide(a)[:, :, None] * wide(b)[None]
        total = np.add.accumulate(products, axis=1)[:, -1]  # one channel after the other
        return interpreter.TensorHandle((total + sums.data).astype(sums.data.dtype), sums.dtype.scalar)

    interpreter._implicit_cvt = implicit
    interpreter.InterpreterBuilder.create_dot = dot


def spoiled_dot():
    """A tl.dot that rounds by place: each number of a tile is off by its own draw of up to four units in the last
    place."""
    generator, dot = np.random.default_rng(0), interpreter.InterpreterBuilder.create_dot

    def spoiled(*arguments):
        made = dot(*arguments)
        noise = generator.integers(-4, 5, made.data.shape) * np.finfo(np.float32).eps
        made.data = (made.data * (1 + noise)).astype(np.float32)
        return made

    return spoiled


@functools.cache
def repair_liger() -> None:
    """Apply the corrections for Liger too, which imports liger-kernel."""
    repair()
    if DEVICE.type == "cpu":
        importlib.import_module("liger_kernel.ops.rms_norm").rsqrt = _rsqrt


@triton.jit
def _rsqrt(x):
    return 1.0 / tl.sqrt(x)
