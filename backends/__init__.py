"""Tensor operations by device: the same function on Ascend, CUDA and the CPU, with one specification for all of them.

    from ppe_npu import backends
    out = backends.attention(query, key, value, causal=True)       # the best implementation for the tensors' device
    out = backends.attention(query, key, value, implementation="reference")
    with backends.dispatch.using(attention="flash_attn"): ...      # or by name, inside the context
    backends.dispatch.chosen()                                     # what ran

    ops.py        the operations: shapes, dtypes, meaning; merging.py has the two that merge tokens
    reference/    plain PyTorch: the specification
    <device>/     faster ones for npu, cuda and cpu, under the same file names; sdpa.py and onehot.py serve several
    registry.py   lists the implementations in order of preference; dispatch.py picks one per call
    device.py     the only module that distinguishes the kinds of devices
    parity/       compares implementations with the reference on the device at hand

This package handles only tensors, not models or configs. Importing it imports torch and no vendor package.
"""

from . import device, dispatch
from .device import DeviceError
from .dispatch import ImplementationError
from .merging import dpc_knn, group_mean
from .ops import attention, linear_cross_entropy, rms_norm, rotary, swiglu

__all__ = [
    "DeviceError",
    "ImplementationError",
    "attention",
    "device",
    "dispatch",
    "dpc_knn",
    "group_mean",
    "linear_cross_entropy",
    "rms_norm",
    "rotary",
    "swiglu",
]
