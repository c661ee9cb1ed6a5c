"""One pass of the vision tower in which a method works between its blocks: what all such passes have in common.

A pass is one object, made when the tower is called and handed to its blocks: nothing is left on a module, so passes may
nest, run in threads, or stop with an exception. It holds indices alone; what has a gradient stands in the rows that go
from block to block, so that a block may be run once more (gradient checkpointing) and gives the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ppe_npu.inspect.tower_work import BlockWork, TowerReport


class Block(Protocol):
    """One call of a block, which a family knows how to run. Rows [T, C] are patches in the order of the tower."""

    @property
    def spares_queries(self) -> bool:
        """Whether rows that are keys and values alone are asked for no query."""
        ...

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        """The block as it is, on all rows."""
        ...

    def segments(self) -> list[int]:
        """The borders within which its rows attend to each other, on the host."""
        ...

    def attended(
        self, rows: torch.Tensor, asking: torch.Tensor, asked: torch.Tensor | None, borders: list[int]
    ) -> torch.Tensor:
        """[n, C] what attention makes of the rows that `asking` [n] names. asked: the rows that are keys and values,
        `asking` itself or, where it is None, all. borders: of its segments among the rows that ask."""
        ...

    def alone(self, rows: torch.Tensor, places: torch.Tensor, borders: list[int]) -> torch.Tensor:
        """The block on these rows [n, C] alone, which stand at `places` [n] among all."""
        ...

    def fed(self, rows: torch.Tensor) -> torch.Tensor:
        """What the block does after its attention, on any rows."""
        ...


class KeyedBlock(Block, Protocol):
    """One that tells the keys of its rows, too."""

    def keyed(
        self, rows: torch.Tensor, places: torch.Tensor, borders: list[int], full: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, C] what attention makes of rows that attend to each other alone, and [n, D] their keys, the mean over
        heads. full: whether all rows are given, of which those at `places` [n] are meant, or these alone."""
        ...


@dataclass
class TowerPass(ABC):
    """One pass.

    Args:
        method: what works inside the tower.
        pools: how many patches compete with each other, one pool after the other, in the order of the tower.
        depth: how many blocks there are.
        open: blocks after which all rows are needed: the last, and those whose output goes somewhere else, too.
        seen: blocks that somebody looks into, whose queries and keys are wanted of all rows.
        report: what is to be told of the work of its blocks.
    """

    method: Any
    pools: tuple[int, ...]
    depth: int
    open: frozenset[int]
    seen: frozenset[int] = frozenset()
    report: TowerReport | None = None

    @abstractmethod
    def run(self, number: int, block: Any, rows: torch.Tensor) -> torch.Tensor:
        """Block `number` on the rows that the one before gave; all rows of the tower, in order, after an open one.
        block: a Block, or whatever else the pass asks for."""

    def show_all(self) -> None:
        """Give all rows after every block."""
        self.open = frozenset(range(self.depth))

    def finished(self) -> TowerReport | None:
        """The report, once the tower has run."""
        if self.report is not None:
            self.report.watch.mark()
        return self.report

    def note(self, number: int, block: Block, ran: tuple[int, int, int] | None = None, **more: int) -> None:
        """Tell the report of a block's work, once. ran, more: as BlockWork; None: as the tower is."""
        if self.report is None or number in self.report.blocks:
            return
        borders = block.segments()
        whole = (borders[-1], borders[-1], int((np.diff(borders) ** 2).sum()))
        self.report.blocks[number] = BlockWork(whole, whole if ran is None else ran, **more)
