"""Rotary embedding over position rows, for engines whose attention calls a module with positions, query and key.

In such an engine every layer looks the same positions up again. Here they are looked up once per step, and each layer
is given the cosines and sines in place of the positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppe_npu import backends
from ppe_npu.engine.rotary import channel_rows


class RowRotary(nn.Module):
    """Rotates every channel by the position row that it reads.

    Args:
        table: [P, D] cosines of P positions and D / 2 channels, then their sines, in the dtype of queries and keys.
        channels: the axis of each of the D / 2 channels.
        rows: R, axes * K.
        head: the width of a head, of which the first D channels are rotated; None: D.
    """

    def __init__(self, table: Tensor, channels: Sequence[int], rows: int, head: int | None = None):
        super().__init__()
        self.head = head or table.shape[1]
        if table.shape[1] != 2 * len(channels):
            raise ValueError(f"a table of {table.shape[1]} columns does not rotate {len(channels)} channels of a half")
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("lookup", torch.tensor(channel_rows(rows, channels)), persistent=False)

    def turns(self, positions: Tensor) -> Tensor:
        """[N, 2D] cosines, then sines, of a head's D channels for each token: what every layer of a step rotates by.

        Args:
            positions: [R, N] int64; values outside the table (stale padding) are clamped to it.
        """
        table = self.table
        half, last = table.shape[1] // 2, len(table) - 1
        rows = positions.index_select(0, self.lookup).T.clamp(0, last)
        cos, sin = (part.gather(0, rows) for part in (table[:, :half], table[:, half:]))
        return torch.cat([cos, cos, sin, sin], dim=-1)

    def forward(self, turns: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The rotated query and key.

        Args:
            turns: [2D, N], the result of turns() transposed: tokens are the last axis, as in an engine's positions.
            query: [N, heads * head]. key: [N, key heads * head].
        """
        width = self.table.shape[1]
        cos, sin = turns.T[None].split(width, dim=-1)
        whole = [part.unflatten(-1, (-1, self.head)).transpose(0, 1)[None] for part in (query, key)]
        heads = [part[..., :width] for part in whole]
        # A compiler can fuse the plain formula, but could only call one of this package's kernels.
        named = "reference" if torch.compiler.is_compiling() else None
        rotated = backends.rotary(*heads, cos, sin, implementation=named)
        if width < self.head:
            rotated = [torch.cat([own, part[..., width:]], dim=-1) for own, part in zip(rotated, whole)]
        query, key = (part[0].transpose(0, 1).flatten(1) for part in rotated)
        return query, key


def rotary_columns(inv_freq: Tensor, positions: int, scaling: float = 1.0) -> Tensor:
    """[positions, D] fp32 cosines and sines of inv_freq [D / 2], as RowRotary takes them."""
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inv_freq.float()
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * scaling
