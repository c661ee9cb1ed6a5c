"""Parts of a plan: made on the host, and copied to a device when a forward pass needs them there."""

from __future__ import annotations

import dataclasses

import torch


class Movable:
    """A dataclass whose tensors travel. NumPy arrays, numbers and methods stay where they are."""

    def to(self, device: torch.device):
        """The same with its tensors on another device."""
        values = {field.name: _moved(getattr(self, field.name), device) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **values)


def _moved(part, device: torch.device):
    if isinstance(part, torch.Tensor):
        return upload(part, device)
    if isinstance(part, tuple):
        return tuple(_moved(entry, device) for entry in part)
    return part.to(device) if hasattr(part, "to") else part


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. An upload of pageable memory makes the host wait for the device's queue, so it is done
    before the vision tower is started."""
    return tensor.to(device, non_blocking=True)
