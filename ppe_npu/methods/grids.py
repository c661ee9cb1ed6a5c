"""A video's tokens as a grid of frames and places, for methods that process it frame by frame and place by place.

A place is a row and a column. Where a cell, which may be smaller or merged before, has no token, the grid has a gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppe_npu.methods.frames import frame_of
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View


@dataclass(frozen=True)
class Grid:
    """F videos of up to T frames with up to U places; the host reads T and U.

    Args:
        slots: [F, N] int64, frame * U + place of each token; T * U where there is no token.
        index: [F, T * U] int64, the token in each slot; N where there is none.
        frames, places: T and U.
    """

    slots: torch.Tensor
    index: torch.Tensor
    frames: int
    places: int

    @classmethod
    def of(cls, view: View) -> Grid:
        frame, sizes = frame_of(view)
        key = (view.places[..., 1] << 20) + view.places[..., 2]
        key = torch.where(view.present, key, torch.iinfo(torch.long).max)
        rising, order = key.sort(dim=1, stable=True)
        steps = torch.nn.functional.pad((rising.diff(dim=1) != 0).long(), (1, 0)).cumsum(1)
        place = torch.empty_like(order).scatter_(1, order, steps)
        largest = torch.stack([(sizes > 0).sum(1).amax(), torch.where(view.present, place, 0).amax() + 1])
        frames, places = largest.tolist()
        count = place.shape[1]
        slots = torch.where(view.present, frame * places + place, frames * places)
        index = torch.full((len(slots), frames * places + 1), count, device=slots.device)
        index.scatter_(1, slots, torch.arange(count, device=slots.device).expand_as(slots))
        return cls(slots, index[:, :-1], frames, places)

    @property
    def there(self) -> torch.Tensor:
        """[F, T, U] bool, where there is a token."""
        return (self.index < self.slots.shape[1]).unflatten(1, (self.frames, self.places))

    def lay(self, values: torch.Tensor) -> torch.Tensor:
        """[F, T, U, ...] fp32, values [F, N, ...] in their slots; 0 in gaps."""
        padded = torch.cat(
            [values.detach().float(), values.new_zeros(len(values), 1, *values.shape[2:]).float()], dim=1
        )
        index = self.index.view(*self.index.shape, *[1] * (values.dim() - 2))
        laid = padded.gather(1, index.expand(*self.index.shape, *values.shape[2:]))
        return laid.unflatten(1, (self.frames, self.places))

    def grouping(self, heads: torch.Tensor, weights: torch.Tensor, order: torch.Tensor | None = None, summed=False):
        """The Grouping of tokens whose groups are identified by the slots of their representatives.

        Args:
            heads: [F, T, U] int64, the slot of the representative of each token's group; -1 for none.
            weights: [F, T, U] fp32, the weight of each token in the mean of its group.
            order: [F, T * U] sort key of each group, at its representative's slot; None: sort by these slots.
            summed: as in Grouping.
        """
        heads, slots = heads.flatten(1), torch.arange(self.index.shape[1], device=heads.device)
        is_head = heads == slots
        rank = slots.expand_as(heads) if order is None else order
        rank = torch.where(is_head, rank, torch.iinfo(torch.long).max)
        first = rank.sort(dim=1, stable=True).indices
        number = torch.empty_like(first).scatter_(1, first, slots.expand_as(first))
        labels = torch.where(heads >= 0, number.gather(1, heads.clamp_min(0)), -1)
        counts = is_head.sum(1)
        most = max(int(counts.max()), 1)
        representatives = torch.where(slots[:most] < counts[:, None], self.index.gather(1, first[:, :most]), 0)
        spare = labels.new_full((len(labels), 1), -1)
        labels = torch.cat([labels, spare], dim=1).gather(1, self.slots)
        weights = torch.cat([weights.flatten(1), weights.new_zeros(len(weights), 1)], dim=1).gather(1, self.slots)
        return Grouping.of(labels, representatives, weights, summed)


def by_head(values: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """[F, T * U] sums of values [F, T, U] over the tokens with each head; tokens with head -1 are left out."""
    heads = heads.flatten(1)
    sums = values.new_zeros(heads.shape)
    return sums.scatter_add_(1, heads.clamp_min(0), torch.where(heads >= 0, values.flatten(1), 0))


def at_heads(sums: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """[F, T, U] the entry of `sums` [F, T * U] at each token's head."""
    return sums.gather(1, heads.flatten(1).clamp_min(0)).view_as(heads)
