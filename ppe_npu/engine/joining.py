"""A pass of the vision tower in which cells are joined and stay joined (see JoiningMethod in methods/tower_methods.py).

How many cells of each pool are left after each block is known before the tower runs, and so are the buckets in which
cells are gathered. Only if blocks attend in windows does the host read which cells are left, once for each block that
joins some, because the number of cells in a window depends on the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ppe_npu.engine.inside import KeyedBlock, TowerPass
from ppe_npu.engine.merge import Tokens, merge
from ppe_npu.engine.rounds import Movable, Round, as_tensor, buckets_of
from ppe_npu.methods.tower_methods import JoiningMethod


@dataclass(frozen=True)
class Joined(Movable):
    """The n cells that are left of V cells, both in the order of the tower.

    Args:
        cells: [n] int64, the cells that are left, rising. rows: [n * patches of a cell] int64, their patches.
        group: [V] int64, the index among the n of the cell that each of the V was joined into.
        sizes: [n] int64, how many cells each of them stands for.
        ends: 0, then where each pool's cells end among the n.
    """

    cells: torch.Tensor
    rows: torch.Tensor
    group: torch.Tensor
    sizes: torch.Tensor
    ends: tuple[int, ...]

    @classmethod
    def of(cls, cells: torch.Tensor, group: torch.Tensor, sizes: torch.Tensor, ends: Sequence[int], patches: int):
        rows = cells[:, None] * patches + torch.arange(patches, device=cells.device)
        return cls(cells, rows.flatten(), group, sizes, tuple(ends))

    @property
    def patches(self) -> int:
        return len(self.rows) // len(self.cells)

    def full(self, rows: torch.Tensor) -> torch.Tensor:
        """[n * patches, C] -> [V * patches, C], where each cell has the values of the cell that it was joined into."""
        return rows.unflatten(0, (-1, self.patches)).index_select(0, self.group).flatten(0, 1)

    def then(self, step: Round, kept: Tokens, ends: Sequence[int]) -> Joined:
        """What is left after a round on these n cells, which keeps those at the indices kept.spots."""
        assert kept.spots is not None, "a round that gets places returns places"
        assert kept.sizes is not None, "a round that gets sizes returns sizes"
        count = len(self.cells)
        stands = self.cells.new_zeros(count + 1)  # for each of the n, the one it is joined into
        for bucket in step.buckets:
            (grouping,) = bucket.groupings
            own = bucket.tokens.gather(1, grouping.representatives.gather(1, grouping.labels.clamp_min(0)))
            stands[torch.where(grouping.labels < 0, count, bucket.tokens)] = own
        new = torch.arange(len(kept.spots), device=stands.device)
        number = torch.zeros_like(self.cells).index_copy_(0, kept.spots, new)
        group = number.index_select(0, stands.index_select(0, self.group))
        return Joined.of(self.cells.index_select(0, kept.spots), group, kept.sizes, ends, self.patches)


@dataclass
class Joining(TowerPass):
    """Between blocks the tensor has the patches of the cells that are left, or of all cells where they are needed: then
    cells that were joined have equal values.

    Args:
        pools: patches of each pool. rounds: the round of each block that joins cells. ends: for each of these blocks,
            as Joined.ends. start: the cells before any of these blocks.
    """

    method: JoiningMethod
    rounds: Mapping[int, Round] = field(default_factory=dict)
    ends: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    start: Joined | None = None
    # For each block that has joined cells, its round with the groups that it found, and the cells that are left.
    _done: dict[int, tuple[Round, Joined]] = field(default_factory=dict, repr=False)
    _borders: dict[tuple, list[int]] = field(default_factory=dict, repr=False)
    _read: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def prepare(self, patches: int, where: torch.device) -> None:
        """Lay out the rounds."""
        counts = [size // patches for size in self.pools]
        ends, steps, rounds, of_block = np.cumsum([0, *counts]), zip(*map(self.method.left, counts)), {}, {}
        here = torch.arange(int(ends[-1]), device=where)
        self.start = Joined.of(here, here, torch.ones_like(here), tuple(ends.tolist()), patches)
        for block, left in zip(self.method.joins(self.depth), steps):
            if list(left) == counts:
                continue
            cells = [np.arange(first, first + count) for first, count in zip(ends, counts)]
            buckets, kept = buckets_of(cells, [(count,) for count in left])
            step = Round(self.method.matching, buckets, order=as_tensor(np.concatenate(kept)))
            counts, ends = list(left), np.cumsum([0, *left])
            rounds[block], of_block[block] = step.to(where), tuple(ends.tolist())
        self.rounds, self.ends = rounds, of_block

    def run(self, number: int, block: KeyedBlock, rows: torch.Tensor) -> torch.Tensor:
        last = max((done for done in self._done if done < number), default=-1)
        if last < 0 and number not in self.rounds:
            self.note(number, block)
            return block.whole(rows)
        assert self.start is not None, "prepare() was called"
        before = (self.start if last < 0 else self._done[last][1]).to(rows.device)
        if last >= 0 and number - 1 in self.open:
            rows = rows.index_select(0, before.rows)
        borders, seen = self._segments(last, before, block.segments()), last >= 0 and number in self.seen
        if number in self.rounds:
            given = before.full(rows) if seen else rows
            after, rows = self._joined(number, before, *block.keyed(given, before.rows, borders, full=seen))
            rows = block.fed(rows)
        else:
            after = before
            if seen:
                rows = block.fed(block.attended(before.full(rows), before.rows, before.rows, borders))
            else:
                rows = block.alone(rows, before.rows, borders)
        asked, lost = len(before.group) * before.patches if seen else len(before.rows), len(before.rows) - len(rows)
        self.note(number, block, (asked, len(rows), int((np.diff(borders) ** 2).sum())), lost=lost)
        return after.full(rows) if number in self.open else rows

    @property
    def stands(self) -> torch.Tensor:
        """[V] int64, once the tower has run, the cell that each cell was joined into (itself if it is left)."""
        assert self.start is not None, "prepare() was called"
        last = self._done[max(self._done)][1] if self._done else self.start
        return last.cells.index_select(0, last.group)

    def _joined(
        self, number: int, before: Joined, rows: torch.Tensor, keys: torch.Tensor
    ) -> tuple[Joined, torch.Tensor]:
        """Take a block's round on rows [n * patches, C], by their keys [n * patches, D]: the cells and rows left."""
        cells = before.patches
        if number not in self._done:
            keys = keys.unflatten(0, (-1, cells)).mean(1)
            spots = torch.arange(len(keys), device=keys.device)
            (step,), kept = merge([self.rounds[number].to(keys.device)], Tokens(keys, spots=spots, sizes=before.sizes))
            self._done[number] = step, before.then(step, kept, self.ends[number])
        step, after = (part.to(rows.device) for part in self._done[number])
        return after, step.apply(rows.unflatten(0, (-1, cells)).flatten(1)).unflatten(1, (cells, -1)).flatten(0, 1)

    def _segments(self, last: int, before: Joined, borders: Sequence[int]) -> list[int]:
        """The borders of segments among the rows that are left; a segment without rows is left out.

        Args:
            last: the block that joined cells last, -1 for none. borders: those of the segments among all rows.
        """
        key = (last, *borders)
        if key not in self._borders:
            assert self.start is not None, "prepare() was called"
            patches, pools = before.patches, [end * before.patches for end in self.start.ends]
            if last < 0:
                found = list(borders)
            elif list(borders) == pools:
                found = [end * patches for end in before.ends]
            else:
                if last not in self._read:
                    self._read[last] = np.array(before.cells.tolist(), dtype=np.int64) * patches
                found = [int(end) * patches for end in np.searchsorted(self._read[last], borders)]
            self._borders[key] = sorted({*found})
        return self._borders[key]
