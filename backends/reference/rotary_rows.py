"""The specification of rotary embedding from position rows: the table is assembled, then applied."""

import torch
from torch import Tensor

from .rotary import rotary


def rotary_rows(
    query: Tensor, key: Tensor, rows: Tensor, inv_freq: Tensor, channel_rows: Tensor, *, scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.rotary_rows`. The table is rounded to the dtype of query, as transformers does."""
    wide = torch.promote_types(query.dtype, torch.float32)
    cos, sin = table(rows, inv_freq.to(wide), channel_rows, scaling)
    return rotary(query, key, cos.to(query.dtype), sin.to(query.dtype))


def table(rows: Tensor, inv_freq: Tensor, channel_rows: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """cos, sin: [B, S, D] in the dtype of inv_freq, the two halves of D alike. Arguments as for `rotary_rows`."""
    angles = rows.permute(1, 2, 0).to(inv_freq.dtype).index_select(-1, channel_rows) * inv_freq
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * scaling, angles.sin() * scaling
