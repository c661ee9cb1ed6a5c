"""A pass of the vision tower whose blocks from one on run on the cells alone that a step at the pixels has kept.

The others stand in its output as zeros, of which nobody is told: the features that are kept are picked behind the tower
(models/pixels.py).
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
    """Between blocks its tensor has the patches of all cells, or of those that are kept.

    Args:
        places: [n] int64, the patches that are kept, rising; with the tower.
    """

    places: torch.Tensor | None = None
    _on_host: np.ndarray | None = field(default=None, repr=False)
    _borders: dict[tuple, list[int]] = field(default_factory=dict, repr=False)

    def keep(self, cells: np.ndarray, patches: int, where: torch.device) -> None:
        """Say what is kept, before the tower is started.

        Args:
            cells: [n] int64, in the order of the tower, rising. patches: of a cell. where: the device of the patches.
        """
        self._on_host = (cells[:, None] * patches + np.arange(patches)).reshape(-1)
        self.places = upload(as_tensor(self._on_host), where)

    def run(self, number: int, block: Block, rows: torch.Tensor) -> torch.Tensor:
        first = self.method.leave_after
        if number < first:
            self.note(number, block)
            return block.whole(rows)
        assert self.places is not None, "it was said what is kept"
        places, borders = self.places.to(rows.device), self._segments(block.segments())
        if number == first or number - 1 in self.open:
            rows = rows.index_select(0, places)
        rows = block.alone(rows, places, borders)
        self.note(number, block, (len(places), len(places), int((np.diff(borders) ** 2).sum())))
        if number not in self.open:
            return rows
        return rows.new_zeros(sum(self.pools), rows.shape[1]).index_copy(0, places, rows)

    def _segments(self, borders: Sequence[int]) -> list[int]:
        """Where the segments between these borders end among the rows that are kept; one without any is none."""
        assert self._on_host is not None, "it was said what is kept"
        key = tuple(borders)
        if key not in self._borders:
            self._borders[key] = np.unique(np.searchsorted(self._on_host, borders)).tolist()
        return self._borders[key]
