"""A pass of the vision tower in which patches leave, and are rebuilt where all are needed (see RebuildingMethod in
methods/tower_methods.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ppe_npu.engine.inside import Block, TowerPass
from ppe_npu.methods.leaving import Leaving
from ppe_npu.methods.tower_methods import RebuildingMethod


@dataclass
class Rebuilding(TowerPass):
    """Between blocks the tensor keeps its number of rows: first the rows that stay, then for each other row its
    difference from the mean of its neighbours (see Leaving).

    Args:
        patches: [P] int64, the rows of the patches that compete, one pool after the other; all others (a tile's class
            token) stay. None: all rows, in their order.
    """

    method: RebuildingMethod
    patches: torch.Tensor | None = None
    _before: torch.Tensor | None = field(default=None, repr=False)
    _leaving: Leaving | None = field(default=None, repr=False)
    _on_host: np.ndarray | None = field(default=None, repr=False)
    _borders: dict[tuple, list[int]] = field(default_factory=dict, repr=False)

    def run(self, number: int, block: Block, rows: torch.Tensor) -> torch.Tensor:
        first = self.method.prune_block
        if number < first or sum(map(self.method.stay, self.pools)) == sum(self.pools):
            if number == first - 1 and self._leaving is None:
                self._before = rows.detach()
            self.note(number, block)
            return block.whole(rows)
        leaving = self._choose(rows)
        if number == first or number - 1 in self.open:
            rows = leaving.compact(rows)
        kept = self._kept(number, block, rows, leaving)
        rows = torch.cat([kept, rows[len(kept) :]])
        self._report_block(number, block, len(kept))
        return leaving.full(rows) if number in self.open else rows

    def _report_block(self, number: int, block: Block, kept: int) -> None:
        if self.report is None:
            return
        borders, alone = block.segments(), not self._stable(number)
        own = np.diff(self.borders(borders, alone))
        asked = kept if alone and number not in self.seen else borders[-1]
        pairs = int((own * (own if alone else np.diff(borders))).sum())
        self.note(number, block, (asked, kept, pairs), spared=0 if alone else block.spares_queries * (asked - kept))

    def _stable(self, number: int) -> bool:
        """Whether the rows that have left are still keys and values in this block."""
        return number < self.method.prune_block + self.method.stabilized_blocks

    def _kept(self, number: int, block: Block, rows: torch.Tensor, leaving: Leaving) -> torch.Tensor:
        """[n, C] a block's output for the rows that stayed."""
        stable = self._stable(number)
        borders = self.borders(block.segments(), alone=not stable)
        if not stable and number not in self.seen:
            return block.alone(rows[: len(leaving.rows)], leaving.rows, borders)
        asked = None if stable else leaving.rows
        return block.fed(block.attended(leaving.full(rows), leaving.rows, asked, borders))

    def _choose(self, rows: torch.Tensor) -> Leaving:
        if self._leaving is None:
            assert self._before is not None, "the block before has run"
            before, now = self._before.to(rows.device), rows.detach()
            if self.patches is None:
                self._leaving = self.method.leaving(before, now, self.pools)
            else:
                at = self.patches.to(rows.device)
                found = self.method.leaving(before.index_select(0, at), now.index_select(0, at), self.pools)
                self._leaving = found.among(at, len(rows))
            self._before = None
        self._leaving = self._leaving.to(rows.device)
        return self._leaving

    def borders(self, borders: Sequence[int], alone: bool) -> list[int]:
        """The borders of these segments among the rows that stayed. The host waits for the device once for all borders
        and blocks.

        Args:
            alone: whether these rows attend only to each other, and not to all rows.
        """
        assert self._leaving is not None, "rows have left"
        key = (*borders, alone)
        if key not in self._borders:
            if self._on_host is None:
                self._on_host = np.array(self._leaving.rows.tolist(), dtype=np.int64)
            counts = np.searchsorted(self._on_host, borders)
            if alone:
                counts = self.method.borders(self._on_host, borders, self.pools)
            self._borders[key] = counts.tolist()
        return self._borders[key]
