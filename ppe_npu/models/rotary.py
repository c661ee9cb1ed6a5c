"""The rotary embedding of a compressed decoder: one table for all layers, from any number of position rows."""

from typing import Protocol

import torch

from ppe_npu.engine.positions import HALVES, axes_of, rotary_table
from ppe_npu.errors import InputError
from ppe_npu.methods.positions.base import RUNS

_PLACES = 64  # at which tables are compared: beyond them a channel's angle is no longer its own
_TRIES = 3


class _RotaryEmbedding(Protocol):
    """What RowRotaryEmbedding needs of transformers' module."""

    inv_freq: torch.Tensor
    attention_scaling: float

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


class RowRotaryEmbedding(torch.nn.Module):
    """Rotary table from position rows [R, B, S], R = axes * K, with the frequencies of the module that it replaces.

    It has that module's buffers, settings and methods under their own names, for who reads frequencies or sets them
    anew; the names of a model's modules and buffers stay what they were.

    Args:
        original: transformers' module. channels: the axis of each channel of half a head.
        pairs: which channels are turned together, see rotary_table.
        table: what several positions on an axis make of it, see rotary_table.

    Raises:
        InputError: a module that gives another table for the same positions: then the family's statement of its
            channels or pairs is wrong for it, and every output would be, too.
    """

    inv_freq: torch.Tensor
    attention_scaling: float

    def __init__(self, original: _RotaryEmbedding, channels: tuple[int, ...], pairs: str = HALVES, table: str = RUNS):
        super().__init__()
        for name in ("_buffers", "_non_persistent_buffers_set"):
            vars(self)[name] = vars(original)[name]
        others = [name for name in dir(original) if not hasattr(self, name)]
        vars(self).update({name: getattr(original, name) for name in others})
        vars(self)["original"] = original  # no submodule
        self.channels = channels
        self.pairs = pairs
        self.table = table
        # What is stated wrongly is wrong every time; in one process, once, the tables were apart (docs/log.md).
        for _ in range(_TRIES):
            theirs, positions = _table_of(original, channels)
            if _agrees(original, channels, pairs, theirs, positions):
                break
        else:
            raise InputError(
                f"{type(original).__name__} gives another table than this model's family states (channels of the axes "
                f"{[channels.count(axis) for axis in range(axes_of(channels))]}, turned by {pairs}): it is not "
                "supported, its outputs would be wrong"
            )
        # Until 5.3 or so transformers wants a table for each axis, of which each layer takes parts.
        self.axes = len(theirs[0]) if theirs[0].ndim == 4 else None

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin: [B, S, D] in the dtype of x (or a view [3, B, S, D] of it for older transformers)."""
        inv_freq, scaling = self.inv_freq.to(position_ids.device), self.attention_scaling
        cos, sin = rotary_table(position_ids, inv_freq, self.channels, scaling, self.pairs, self.table)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return (
            (cos, sin) if self.axes is None else (cos.expand(self.axes, *cos.shape), sin.expand(self.axes, *sin.shape))
        )


def _table_of(
    original: _RotaryEmbedding, channels: tuple[int, ...]
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """transformers' table at places that differ by axis, and these [axes, 1, P]."""
    inv_freq = original.inv_freq
    places = torch.arange(_PLACES, device=inv_freq.device)
    positions = torch.stack([places.roll(axis) for axis in range(axes_of(channels))])[:, None]
    asked = positions if len(positions) > 1 else positions[0]
    with torch.no_grad():
        return original(inv_freq.new_zeros(1, 1, 1, dtype=torch.float32), asked), positions


def _agrees(
    original: _RotaryEmbedding,
    channels: tuple[int, ...],
    pairs: str,
    table: tuple[torch.Tensor, torch.Tensor],
    positions: torch.Tensor,
) -> bool:
    """Whether transformers' table at these positions is ours, within the roundings of the angle, its cosine and the
    scale."""
    if table[0].is_meta:
        return True
    ours = rotary_table(positions, original.inv_freq, channels, original.attention_scaling, pairs)
    for theirs, own in zip(table, ours):
        if theirs.ndim == 4:  # a table for each axis
            axis = torch.tensor([*channels, *channels], device=theirs.device)
            theirs = theirs.gather(0, axis.expand(theirs.shape[1:])[None])[0]
        most = (_PLACES + 4) * torch.finfo(torch.float32).eps * own.abs().max().clamp(min=1)
        if theirs.shape != own.shape or (theirs - own).abs().max() > most:
            return False
    return True
