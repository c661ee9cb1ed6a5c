"""A pass of the vision tower whose blocks, from a given one on, run only on the cells that a step at the pixels kept.

In the tower's output the other cells are zeros, which are never used: models/pixels.py picks the features of the kept
cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ppe_npu.engine.inside import Block, TowerPass
from ppe_npu.engine.rounds import as_tensor, upload


@dataclass
class Dropping(TowerPass):
    """Between blocks the tensor has the patches of all cells, or only those of the kept cells.

    Args:
        places: [n] int64, the kept patches, rising; on the tower's device.
    """

    places: torch.Tensor | None = None
    _on_host: np.ndarray | None = field(default=None, repr=False)
    _borders: dict[tuple, list[int]] = field(default_factory=dict, repr=False)

    def keep(self, cells: np.ndarray, patches: int, where: torch.device) -> None:
        """Set which cells are kept, before the tower starts.

        Args:
            cells: [n] int64, in the order of the tower, rising. patches: how many a cell has. where: their device.
        """
        self._on_host = (cells[:, None] * patches + np.arange(patches)).reshape(-1)
        self.places = upload(as_tensor(self._on_host), where)

    def run(self, number: int, block: Block, rows: torch.Tensor) -> torch.Tensor:
        first = self.method.leave_after
        if number < first:
            self.note(number, block)
            return block.whole(rows)
        assert self.places is not None, "keep() was called"
        places, borders = self.places.to(rows.device), self._segments(block.segments())
        if number == first or number - 1 in self.open:
            rows = rows.index_select(0, places)
        rows = block.alone(rows, places, borders)
        self.note(number, block, (len(places), len(places), int((np.diff(borders) ** 2).sum())))
        if number not in self.open:
            return rows
        return rows.new_zeros(sum(self.pools), rows.shape[1]).index_copy(0, places, rows)

    def _segments(self, borders: Sequence[int]) -> list[int]:
        """The borders of these segments among the kept rows; a segment without kept rows is left out."""
        assert self._on_host is not None, "keep() was called"
        key = tuple(borders)
        if key not in self._borders:
            self._borders[key] = np.unique(np.searchsorted(self._on_host, borders)).tolist()
        return self._borders[key]
