"""The rotary embedding of a compressed decoder: one table for all layers, from any number of position rows.

For a merged token that keeps K positions, the channels of each axis are split into K runs of nearly equal length, and
run j is rotated by the j-th kept position (PPE, arXiv 2510.22936, section 3). So positions are [R, B, S] rows, R = axes
or axes * K, row = axis * K + j. Channel c of half a head reads one row r(c), as does its partner in the other half, so
that the table of cos and sin is [B, S, D] for any K, and all layers share it.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ppe_npu.backends.device import uploaded_once
from ppe_npu.engine.positions import HALVES, NEIGHBOURS, axes_of, check_channels
from ppe_npu.errors import InputError
from ppe_npu.methods.positions.base import MEAN_ANGLE, RUNS

_PLACES = 64  # positions at which tables are compared; the error that is allowed grows with the largest
_TRIES = 3
GROWING = "dynamic"  # the rope_type whose frequencies depend on the largest position if that exceeds the trained ones
_HOOKED = ("_hf_hook", "_old_forward")  # set by accelerate on a module that it hooks, and later removed there


def held_rows(positions: torch.Tensor, held: torch.Tensor, by_axis: bool) -> torch.Tensor:
    """[R, B, L] position rows of tokens, from the original tokens that they hold; R = axes * K.

    Args:
        positions: [axes, originals].
        held: [B, L, K] int64; with `by_axis` [B, L, axes * K], unless its width is 1.
    """
    if by_axis and held.shape[-1] > 1:
        own = held.chunk(len(positions), dim=-1)
        return torch.cat([at[of_axis].permute(2, 0, 1) for at, of_axis in zip(positions, own)])
    return positions[:, held].permute(0, 3, 1, 2).flatten(0, 1)  # [axes, B, L, K] -> rows axis * K + j


def channel_rows(rows: int, channels: Sequence[int]) -> list[int]:
    """The row that each channel of half a head reads: the channels of an axis, in order, are split into K runs.

    Runs are as even as possible (split as by np.array_split): of n channels, the first n % K runs have one more.

    Args:
        rows: R = axes * K.
        channels: the axis of each channel.
    """
    axes = axes_of(channels)
    k = rows // axes
    if rows != axes * k or k < 1:
        raise ValueError(f"positions have {rows} rows for {axes} axes: give axes * K rows, a multiple of {axes}")
    check_channels(k, channels)
    out = np.zeros(len(channels), np.int64)
    for axis in range(axes):
        for run, own in enumerate(np.array_split(np.flatnonzero(np.array(channels) == axis), k)):
            out[own] = axis * k + run
    return out.tolist()


def rotary_table(
    rows: torch.Tensor,
    inv_freq: torch.Tensor,
    channels: Sequence[int],
    scaling: float = 1.0,
    pairs: str = HALVES,
    table: str = RUNS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every token and channel.

    Args:
        rows: [R, B, S] positions.
        inv_freq: [D / 2] fp32, radians per position.
        channels: the axis of each of the D / 2 channels.
        pairs: which two of the D entries channel c rotates: "halves", c and c + D / 2; "neighbours", 2 c and 2 c + 1.
        table: how several positions on an axis are combined, see methods.positions.base.Rule.

    Returns:
        cos, sin: [B, S, D] fp32, equal for the two entries of a pair.
    """
    inv_freq = inv_freq.float()
    if table == RUNS:
        angles = _angles(rows, channels, inv_freq)
        cos, sin = angles.cos(), angles.sin()
    else:
        cos, sin = _mean_rotation(rows, channels, inv_freq, unit=table == MEAN_ANGLE)
    if pairs == NEIGHBOURS:
        cos, sin = (part.repeat_interleave(2, dim=-1) for part in (cos, sin))
    else:
        cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)
    return cos * scaling, sin * scaling


def _angles(rows: torch.Tensor, channels: Sequence[int], inv_freq: torch.Tensor) -> torch.Tensor:
    """[B, S, D / 2] fp32 radians."""
    lookup = _channel_lookup(rows.shape[0], tuple(channels), rows.device)
    return rows.permute(1, 2, 0).to(inv_freq.dtype).index_select(-1, lookup) * inv_freq


def _mean_rotation(
    rows: torch.Tensor, channels: Sequence[int], inv_freq: torch.Tensor, unit: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, S, D / 2] cos and sin of the mean of the rotations by K positions, where repeated positions count once.
    unit: scale the mean to length 1; where the rotations cancel out, take the first one."""
    own = rows.unflatten(0, (axes_of(channels), -1)).transpose(0, 1)  # [K, axes, B, S]
    earlier = torch.ones(len(own), len(own), dtype=torch.bool, device=rows.device).tril(-1)
    repeated = ((own[:, None] == own[None]).all(2) & earlier[:, :, None, None]).any(1)
    weights = (~repeated).float()[..., None]
    angles = torch.stack([_angles(part, channels, inv_freq) for part in own])
    first, count = angles[0], weights.sum(0)
    cos, sin = ((weights * part).sum(0) / count for part in (angles.cos(), angles.sin()))
    if not unit:
        return cos, sin
    length = torch.hypot(cos, sin)
    told = length > len(own) * torch.finfo(torch.float32).eps  # the rounding error of K terms of size 1
    length = torch.where(told, length, 1)
    return torch.where(told, cos / length, first.cos()), torch.where(told, sin / length, first.sin())


@uploaded_once
def _channel_lookup(rows: int, channels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """channel_rows on the device."""
    return torch.tensor(channel_rows(rows, channels), device=device)


class _RotaryEmbedding(Protocol):
    """The part of transformers' module that RowRotaryEmbedding needs."""

    inv_freq: torch.Tensor
    attention_scaling: float

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


class RowRotaryEmbedding(torch.nn.Module):
    """Makes the rotary table from position rows [R, B, S], R = axes * K, with the frequencies of the replaced module.

    It has that module's buffers, settings and methods under the same names, for code that reads or sets frequencies;
    the names of the model's modules and buffers do not change.

    Args:
        original: transformers' module. channels: the axis of each channel of half a head.
        pairs: which entries are rotated together, see rotary_table.
        table: how several positions on an axis are combined, see rotary_table.

    Raises:
        InputError: the module gives another table for the same positions. Then the family states wrong channels or
            pairs for it, and every output would be wrong, too.
    """

    inv_freq: torch.Tensor
    attention_scaling: float
    original: _RotaryEmbedding

    def __init__(self, original: _RotaryEmbedding, channels: tuple[int, ...], pairs: str = HALVES, table: str = RUNS):
        super().__init__()
        for name in ("_buffers", "_non_persistent_buffers_set"):
            vars(self)[name] = vars(original)[name]
        others = [name for name in dir(original) if not hasattr(self, name) and name not in _HOOKED]
        vars(self).update({name: getattr(original, name) for name in others})
        vars(self)["original"] = original  # not as a submodule
        self.channels = channels
        self.pairs = pairs
        self.table = table
        # Wrong channels or pairs differ at every try. The retry is for one unexplained difference (docs/log.md).
        for _ in range(_TRIES):
            theirs, positions = _table_of(original, channels)
            if _agrees(original, channels, pairs, theirs, positions):
                break
        else:
            raise InputError(
                f"{type(original).__name__} computes another table than this model's family expects (channels of the "
                f"axes {[channels.count(axis) for axis in range(axes_of(channels))]}, rotated by {pairs}): it is not "
                "supported, because outputs would be wrong"
            )
        # Up to about version 5.3 transformers expects a table for each axis, of which each layer takes parts.
        self.axes = len(theirs[0]) if theirs[0].ndim == 4 else None

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin: [B, S, D] in the dtype of x (or a view [3, B, S, D] of it for older transformers)."""
        if getattr(self, "rope_type", None) == GROWING:
            # transformers' module updates its buffer of frequencies, which this module shares.
            largest = position_ids.amax().view(1, 1)
            self.original(x[:1, :1], largest if axes_of(self.channels) == 1 else largest.expand(3, 1, 1))
        inv_freq, scaling = self.inv_freq.to(position_ids.device), self.attention_scaling
        cos, sin = rotary_table(position_ids, inv_freq, self.channels, scaling, self.pairs, self.table)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return (
            (cos, sin) if self.axes is None else (cos.expand(self.axes, *cos.shape), sin.expand(self.axes, *sin.shape))
        )


def _table_of(
    original: _RotaryEmbedding, channels: tuple[int, ...]
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """transformers' table at positions that differ by axis, and [axes, 1, P] these positions."""
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
    """Whether transformers' table at these positions equals ours, up to rounding of the angle, its cosine and the
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
