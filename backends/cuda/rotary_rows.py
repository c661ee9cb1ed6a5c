"""rotary_rows by a Triton kernel: a token's angles are made in registers, for all its heads; there is no table."""

import torch
from torch import Tensor

from . import turn


def refusal(
    query: Tensor, key: Tensor, rows: Tensor, inv_freq: Tensor, channel_rows: Tensor, *, scaling: float = 1.0
) -> str | None:
    """What `turn` refuses; positions that are no integers."""
    if rows.dtype not in (torch.int32, torch.int64):
        return f"the Triton kernel takes int32 and int64 positions, not {rows.dtype}"
    return turn.refusal(query, key, inv_freq)


def rotary_rows(
    query: Tensor, key: Tensor, rows: Tensor, inv_freq: Tensor, channel_rows: Tensor, *, scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.rotary_rows`."""
    return turn.turned(query, key, channel_rows, inv_freq, rows, scaling)
