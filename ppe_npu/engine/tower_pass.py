"""One pass of the vision tower in which patches leave its blocks: what leaves where, and what the pass remembers.

A pass is one object, made when the tower is called and handed to its blocks: nothing is left on a module, so passes may
nest, run in threads, or stop with an exception. It holds indices alone; what has a gradient stands in the rows that go
from block to block, so that a block may be run once more (gradient checkpointing) and gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from ppe_npu.engine.pixels import Chosen
from ppe_npu.engine.spans import PromptLayout, VisionTokens
from ppe_npu.errors import InputError
from ppe_npu.inspect.tower_work import BlockWork, TowerReport
from ppe_npu.methods.base import Method
from ppe_npu.methods.ipcv import IPCV, Leaving


class Block(Protocol):
    """One call of a block, which a family knows how to run. Rows [T, C] are patches in the order of the tower."""

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        """The block as it is, on all rows."""
        ...

    def attended(self, rows: torch.Tensor, asking: torch.Tensor, asked: torch.Tensor | None) -> torch.Tensor:
        """[n, C] what attention makes of the rows that `asking` [n] names. asked: the rows that are keys and values,
        `asking` itself or, where it is None, all."""
        ...

    def segments(self) -> list[int]:
        """The borders within which its rows attend to each other, on the host."""
        ...

    def alone(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The block on these rows [n, C] alone, which stand at `places` [n] among all."""
        ...

    def fed(self, rows: torch.Tensor) -> torch.Tensor:
        """What the block does after its attention, on any rows."""
        ...


@dataclass
class TowerPass:
    """One pass.

    Args:
        method: what works inside the tower.
        pools: how many patches compete with each other, one pool after the other, in the order of the tower.
        depth: how many blocks there are.
        open: blocks after which all rows are needed: the last, and those whose output goes somewhere else, too.
        seen: blocks that somebody looks into, whose queries and keys are wanted of all rows.
        report: what is to be told of the work of its blocks.
    """

    method: IPCV
    pools: tuple[int, ...]
    depth: int
    open: frozenset[int]
    seen: frozenset[int] = frozenset()
    report: TowerReport | None = None
    _before: torch.Tensor | None = field(default=None, repr=False)
    _leaving: Leaving | None = field(default=None, repr=False)
    _on_host: np.ndarray | None = field(default=None, repr=False)
    _borders: dict[tuple, list[int]] = field(default_factory=dict, repr=False)

    def run(self, number: int, block: Block, rows: torch.Tensor) -> torch.Tensor:
        """Block `number` on the L rows that the one before gave: all of them, in order, or compact (see Leaving)."""
        first = self.method.prune_block
        if number < first or sum(map(self.method.stay, self.pools)) == sum(self.pools):
            if number == first - 1 and self._leaving is None:
                self._before = rows.detach()
            self._note(number, block, len(rows))
            return block.whole(rows)
        leaving = self._choose(rows)
        if number == first or number - 1 in self.open:
            rows = leaving.compact(rows)
        kept = self._kept(number, block, rows, leaving)
        rows = torch.cat([kept, rows[len(kept) :]])
        self._note(number, block, len(kept))
        return leaving.full(rows) if number in self.open else rows

    def finished(self) -> TowerReport | None:
        """The report, once the tower has run."""
        if self.report is not None:
            self.report.watch.mark()
        return self.report

    def _note(self, number: int, block: Block, kept: int) -> None:
        """Tell the report of a block's work, once."""
        if self.report is None or number in self.report.blocks:
            return
        borders = block.segments()
        lengths, total = np.diff(borders), borders[-1]
        whole = (total, total, int((lengths**2).sum()))
        if kept == total:
            self.report.blocks[number] = BlockWork(whole, whole)
            return
        alone = number >= self.method.prune_block + self.method.stabilized_blocks
        own = np.diff(self.borders(borders, alone))
        asked = kept if alone and number not in self.seen else total
        pairs = int((own * (own if alone else lengths)).sum())
        self.report.blocks[number] = BlockWork(whole, (asked, kept, pairs))

    def _kept(self, number: int, block: Block, rows: torch.Tensor, leaving: Leaving) -> torch.Tensor:
        """[n, C] what a block makes of the rows that stayed."""
        stable = number < self.method.prune_block + self.method.stabilized_blocks
        if not stable and number not in self.seen:
            return block.alone(rows[: len(leaving.rows)], leaving.rows)
        return block.fed(block.attended(leaving.full(rows), leaving.rows, None if stable else leaving.rows))

    def _choose(self, rows: torch.Tensor) -> Leaving:
        if self._leaving is None:
            assert self._before is not None, "the block before has run"
            self._leaving = self.method.choose(self._before.to(rows.device), rows.detach(), self.pools)
            self._before = None
        self._leaving = self._leaving.to(rows.device)
        return self._leaving

    def borders(self, borders: Sequence[int], alone: bool) -> list[int]:
        """Where the segments between these borders end among the rows that stayed. The host waits for the device once
        for all borders and blocks.

        Args:
            alone: whether the rows attend to each other alone, and not to all.
        """
        assert self._leaving is not None, "rows have left"
        key = (*borders, alone)
        if key not in self._borders:
            if self._on_host is None:
                self._on_host = np.array(self._leaving.rows.tolist(), dtype=np.int64)
            count = self.method.borders if alone else np.searchsorted
            self._borders[key] = [int(before) for before in count(self._on_host, borders)]
        return self._borders[key]


def pass_of(
    method: IPCV, sizes: Sequence[int], vision: VisionTokens, seen: Sequence[int] = (), shown: bool = False
) -> TowerPass:
    """A new pass.

    Args:
        sizes: patches of each pool. seen: blocks that are looked into. shown: all rows are wanted after every block.
    """
    last = vision.tower_blocks - 1
    wanted = range(last + 1) if shown else (*vision.taps, last)
    return TowerPass(method, tuple(sizes), last + 1, frozenset(wanted), frozenset(seen))


def inside_of(methods: Sequence[Method]) -> IPCV | None:
    """The method that works inside the tower, if there is one.

    Raises:
        InputError: several.
    """
    inside = [method for method in methods if method.place == "tower"]
    if len(inside) > 1:
        raise InputError(f"{inside[1].name} after {inside[0].name}: only one step may stand inside the vision tower")
    return inside[0] if inside else None  # type: ignore[return-value]


def pools_of(
    layout: PromptLayout, kinds: Sequence[str], merge_size: int, per_image: bool, chosen: Chosen | None = None
) -> list[int]:
    """How many patches compete with each other, in the order in which the tower is given them: those of all images of
    a sample, and of all its videos; or of each image and video.

    Args:
        kinds: of the images and videos that the tower runs on. chosen: which of their tokens a step at the pixels
            keeps.
    """
    sizes: dict[tuple, int] = {}
    for span in sorted(layout.spans, key=lambda span: span.feature):
        if span.modality in kinds:
            pool = (span.modality, span.sample, span.source if per_image else None)
            tokens = span.tokens if chosen is None else int(chosen.counts([span.feature], [span.tokens])[0])
            sizes[pool] = sizes.get(pool, 0) + tokens * merge_size**2
    return list(sizes.values())
