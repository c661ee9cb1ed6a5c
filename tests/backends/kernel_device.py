"""Where the tests run Triton's kernels: compiled on a machine with CUDA, else on the CPU in Triton's interpreter.

Tests make and compare their tensors on the CPU: `on_device` moves them to the kernels and back. tests/conftest.py turns
the interpreter on if there is no CUDA.
"""

import functools
import os
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def on_device(kernels: Callable | types.ModuleType, where: torch.device = DEVICE) -> Any:
    """The function, or module of functions, wrapped to take and return tensors on the CPU and to run on `where`."""
    if where.type == "cpu":
        return kernels
    return _Moved(kernels, where) if isinstance(kernels, types.ModuleType) else _moved(kernels, where)


class _Moved:
    def __init__(self, module: types.ModuleType, where: torch.device):
        self._module, self._where = module, where

    def __getattr__(self, name: str) -> Callable:
        return _moved(getattr(self._module, name), self._where)


def _moved(function: Callable, where: torch.device) -> Callable:
    @functools.wraps(function)
    def moved(*args, **kwargs):
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(where), (args, kwargs))
        return tree_map_only(torch.Tensor, torch.Tensor.cpu, function(*args, **kwargs))

    return moved
