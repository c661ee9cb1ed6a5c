"""Leaving: a plan of which patches leave the blocks of a vision tower, and from which others they are rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from ppe_npu.backends import device
from ppe_npu.backends.reference.dpc_knn import probable_error
from ppe_npu.methods.choosing import exact

_AT_ONCE = 2**20  # elements of a temporary tensor that fits a CPU's caches
_MORE_ON_A_DEVICE = 64  # times as many on a device, where launches cost more than memory


@dataclass(frozen=True)
class Leaving:
    """Which rows of [L, C] stay, and the rows that the others are rebuilt from.

    Args:
        rows: [n] int64, the rows that stay, ascending. removed: [R] int64, the others.
        neighbours: [R, k] int64, indices into `rows`.
        present: [R, k] fp32, 1 where there is such a neighbour, else 0; None if all have k.
    """

    rows: torch.Tensor
    removed: torch.Tensor
    neighbours: torch.Tensor
    present: torch.Tensor | None

    @classmethod
    def of_scores(
        cls, scores: torch.Tensor, now: torch.Tensor, pools: Sequence[int], stay: Sequence[int], neighbors: int
    ) -> Leaving:
        """Of every pool the rows of largest score stay, ties to the first; each of the others is rebuilt from those
        nearest to it.

        Args:
            scores: [L]. now: [L, C] the rows, among which neighbours are found, in fp32 or better.
            pools: the sizes of consecutive pools; they sum to L. stay: how many rows of each pool stay.
            neighbors: from how many staying rows each of the others is rebuilt, fewer where fewer stay.
        """
        with exact(now):
            wide = torch.promote_types(now.dtype, torch.float32)
            found, start, stayed = [], 0, 0
            for size, count, scored in zip(pools, stay, scores.split(list(pools))):
                order = scored.sort(descending=True, stable=True).indices
                rows, removed = (part.sort().values + start for part in (order[:count], order[count:]))
                near = nearest_rows(now[removed].to(wide), now[rows].to(wide), min(neighbors, count))
                found.append((rows, removed, near + stayed))
                start, stayed = start + size, stayed + count
            return cls.of(*map(list, zip(*found)))

    @classmethod
    def of(cls, rows: list[torch.Tensor], removed: list[torch.Tensor], near: list[torch.Tensor]) -> Leaving:
        """From lists with one tensor for each pool."""
        most = max(part.shape[1] for part in near)
        present = None
        if any(part.shape[1] < most for part in near):
            ones = (torch.ones_like(part, dtype=torch.float32) for part in near)
            present = torch.cat([_padded(part, most) for part in ones])
        return cls(torch.cat(rows), torch.cat(removed), torch.cat([_padded(part, most) for part in near]), present)

    def among(self, at: torch.Tensor, total: int) -> Leaving:
        """The same for `total` rows, of which the competing ones are at the indices `at` [L], and all others stay."""
        removed = at.index_select(0, self.removed)
        left = torch.zeros(total, dtype=torch.int32, device=at.device).index_fill_(0, removed, 1)
        rows = left.argsort(stable=True)[: total - len(removed)]
        place = (1 - left).cumsum(0) - 1
        stayed = place.index_select(0, at.index_select(0, self.rows))
        return Leaving(rows, removed, stayed[self.neighbours], self.present)

    def to(self, where: torch.device) -> Leaving:
        """These rows on another device."""
        if self.rows.device == where:
            return self
        parts = (self.rows, self.removed, self.neighbours, self.present)
        return Leaving(*(None if part is None else part.to(where) for part in parts))

    def compact(self, full: torch.Tensor) -> torch.Tensor:
        """[L, C] rows that stay, followed by the difference of each removed row to the mean of its neighbours, which is
        constant while it is away. full: [L, C] all rows, in order."""
        kept, left = full.index_select(0, self.rows), full.index_select(0, self.removed)
        means = self._means(kept)
        return torch.cat([kept, (left.to(means.dtype) - means).to(full.dtype)])

    def full(self, compact: torch.Tensor) -> torch.Tensor:
        """[L, C] all rows, in order, from the result of compact(), whose first rows may have changed since."""
        kept, left = compact.split([len(self.rows), len(self.removed)])
        means = self._means(kept)
        rebuilt = (left.to(means.dtype) + means).to(kept.dtype)
        return torch.empty_like(compact).index_copy_(0, self.rows, kept).index_copy_(0, self.removed, rebuilt)

    def _means(self, kept: torch.Tensor) -> torch.Tensor:
        """[R, C] mean of the neighbours of each removed row, in fp32 or better, a chunk of rows at a time; on a CPU, if
        no derivative is needed, in one pass by embedding_bag, which supports only first derivatives."""
        wide = torch.promote_types(kept.dtype, torch.float32)
        derived = (torch.is_grad_enabled() and kept.requires_grad) or forward_ad._current_level >= 0
        if self.present is None and device.on_cpu(kept.device) and not derived:
            return F.embedding_bag(self.neighbours, kept.to(wide), mode="mean")
        step = _step(self.neighbours.shape[1] * kept.shape[1], kept.device)
        present = [None] * len(self.neighbours) if self.present is None else self.present[:, :, None].split(step)
        parts = []
        for near, there in zip(self.neighbours.split(step), present):
            found = kept.index_select(0, near.flatten()).unflatten(0, near.shape)
            parts.append(found.mean(1, dtype=wide) if there is None else (found * there.to(wide)).sum(1) / there.sum(1))
        return torch.cat(parts) if parts else kept.new_zeros(0, kept.shape[1], dtype=wide)


def nearest_rows(rows: torch.Tensor, others: torch.Tensor, count: int) -> torch.Tensor:
    """[R, count] int64, which of the others [n, C] are nearest to each row [R, C], nearest first; in fp32 or better.

    Distances come from one product, a chunk of rows at a time. A distance below its rounding error counts as 0, and the
    first of several copies is the nearest; other ties are in any order.
    """
    middle = others.mean(0)
    rows, others = rows - middle, others - middle
    squares, places = others.square().sum(1), torch.arange(len(others), device=others.device)
    bound, turned, found = probable_error(others.shape[1], others.dtype), others.T, []
    for part in rows.split(_step(len(others), rows.device)):
        both = part.square().sum(1, keepdim=True) + squares
        away = both - 2 * (part @ turned)
        away = torch.where(away > bound * both, away, (places - len(others)).to(away.dtype))
        found.append(away.topk(count, dim=1, largest=False).indices)
    return torch.cat(found) if found else places.new_zeros(0, count)


def _step(size: int, where: torch.device) -> int:
    return max(1, _AT_ONCE * (1 if device.on_cpu(where) else _MORE_ON_A_DEVICE) // size)


def _padded(part: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(part, (0, width - part.shape[1]))
