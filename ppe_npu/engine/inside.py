"""One pass of the vision tower in which a method works between its blocks: what all such passes have in common.

A pass is one object, made when the tower is called and handed to its blocks. Nothing is left on a module, so passes may
nest, run in threads, or stop with an exception. A pass holds only indices; whatever has a gradient is in the rows that
go from block to block, so that a block can run again (gradient checkpointing) and give the same result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ppe_npu.inspect.tower_work import BlockWork, TowerReport


class Block(Protocol):
    """One call of a block, implemented by a model family. Rows [T, C] are patches in the order of the tower."""

    @property
    def spares_queries(self) -> bool:
        """Whether no queries are computed for rows that are only keys and values."""
        ...

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        """The output of the unmodified block on all rows."""
        ...

    def segments(self) -> list[int]:
        """The borders of the segments within which all rows attend to each other, on the host."""
        ...

    def attended(
        self, rows: torch.Tensor, asking: torch.Tensor, asked: torch.Tensor | None, borders: list[int]
    ) -> torch.Tensor:
        """[n, C] the rows at `asking` [n], which are the queries, after attention and its residual. asked: the rows
        that are keys and values: `asking` itself, or None for all. borders: those of the segments among the queries."""
        ...

    def alone(self, rows: torch.Tensor, places: torch.Tensor, borders: list[int]) -> torch.Tensor:
        """[n, C] the block's output for rows [n, C] that attend to each other alone; `places` [n] are their indices
        among all rows."""
        ...

    def fed(self, rows: torch.Tensor) -> torch.Tensor:
        """The block's work after its attention (norm, MLP and residual), on any rows."""
        ...


class KeyedBlock(Block, Protocol):
    """A block that also returns the keys of its rows."""

    def keyed(
        self, rows: torch.Tensor, places: torch.Tensor, borders: list[int], full: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, C] rows that attend to each other alone, after attention and its residual, and [n, D] their keys, the
        mean over heads. full: whether `rows` has all rows, of which those at `places` [n] are used, or only these n."""
        ...


@dataclass
class TowerPass(ABC):
    """One pass of the vision tower.
    Args:
        method: the method that works inside the tower.
        pools: the number of patches in each pool, in the order of the tower. The patches of a pool compete.
        depth: the number of blocks.
        open: blocks after which all rows are needed: the last, and those whose output is also used elsewhere.
        seen: blocks that a method looks into, which need the queries and keys of all rows.
        report: records the work of the blocks, if it is given.
    """

    method: Any
    pools: tuple[int, ...]
    depth: int
    open: frozenset[int]
    seen: frozenset[int] = frozenset()
    report: TowerReport | None = None

    def prepare(self, patches: int, where: torch.device) -> None:  # noqa: B027  most kinds have nothing to prepare
        """Lay out what is known before the tower starts. patches: how many a cell has. where: their device."""

    @abstractmethod
    def run(self, number: int, block: Any, rows: torch.Tensor) -> torch.Tensor:
        """Run block `number` on the output of the block before. What an open block returns, and what the block after
        it is given, are all rows of the tower, in order. block: a Block, or a kind of it that the pass needs."""

    @property
    def stands(self) -> torch.Tensor | None:
        """[V] int64, once the tower has run, the cell that each cell was joined into; None if none can be joined."""
        return None

    def show_all(self) -> None:
        """Return all rows after every block."""
        self.open = frozenset(range(self.depth))

    def finished(self) -> TowerReport | None:
        """The report, once the tower has run."""
        if self.report is not None:
            self.report.watch.mark()
        return self.report

    def note(self, number: int, block: Block, ran: tuple[int, int, int] | None = None, **more: int) -> None:
        """Record a block's work in the report, once. ran, more: as in BlockWork; None: it ran on all rows."""
        if self.report is None or number in self.report.blocks:
            return
        borders = block.segments()
        whole = (borders[-1], borders[-1], int((np.diff(borders) ** 2).sum()))
        self.report.blocks[number] = BlockWork(whole, whole if ran is None else ran, **more)
