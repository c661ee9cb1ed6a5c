"""Models that are built once and handed out as copies, because random weights take ten times as long as a copy."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from draws import seed_torch

_MADE: dict[Any, Twins] = {}


class _Pickler(pickle.Pickler):
    """Pickles everything but tensors, which it numbers."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        number = next((n for n, tensor in enumerate(self.tensors) if tensor is obj), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(obj)
        return number


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]):
        super().__init__(file)
        self._copies = [_copy(tensor) for tensor in tensors]

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._copies[pid]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().clone()
    return torch.nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else copy


class Twins:
    """Copies of what a function makes; torch's random numbers go on as they do after the function."""

    def __init__(self, make: Callable[[], Any]):
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(make())
        self._data, self._tensors, self._state = file.getvalue(), pickler.tensors, torch.get_rng_state()

    def one(self) -> Any:
        torch.set_rng_state(self._state)
        seed_torch(torch.initial_seed())  # of every device, as `make` does
        torch.set_rng_state(self._state)
        return _Unpickler(io.BytesIO(self._data), self._tensors).load()


def twin(key: Any, make: Callable[[], Any]) -> Any:
    """A copy of what `make` made for this key.

    Args:
        make: draws only from torch's generator, which it seeds itself.
    """
    if key not in _MADE:
        _MADE[key] = Twins(make)
    return _MADE[key].one()
