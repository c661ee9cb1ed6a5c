"""What later steps need to know of a prompt whose KV cache has a fixed length (transformers' static caches).

A step changes what these tensors hold, and nothing else: no shape, no number on the host, no object. So one decoding
step is compiled once for all steps, and what was recorded of it (CUDA graphs, ACL graphs) can be played again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ppe_npu.engine.cache import CacheState
from ppe_npu.errors import InputError


@dataclass
class FixedState:
    """CacheState of a cache with room for so many places.

    Args:
        layers: as CacheState.
        masks: [stages, B, room] bool, True at the places that hold a token.
        following: [stages, B] int64, the position of the next token.
        filled: [stages] int64, how many places are taken: the next token goes to this one.
        sizes: [stages, B, room] int64, or None, as CacheState's.
        start: the state that it was made from. A step does not look at it.
    """

    layers: tuple[int, ...]
    masks: torch.Tensor
    following: torch.Tensor
    filled: torch.Tensor
    sizes: torch.Tensor | None
    start: CacheState

    @classmethod
    def of(cls, state: CacheState, room: int) -> FixedState:
        """Raises InputError where the places do not fit."""
        most = max(state.lengths)
        if most > room:
            raise InputError(f"a static cache of {room} places is too short for {most}: make it longer")
        masks = torch.stack([_padded(mask, room, False) for mask in state.masks])
        filled = torch.tensor(state.lengths, device=masks.device)
        sizes = None
        if any(own is not None for own in state.sizes):
            ones = (torch.ones_like(mask, dtype=torch.long) for mask in state.masks)
            whole = (one if own is None else own for own, one in zip(state.sizes, ones))
            sizes = torch.stack([_padded(own, room, 1) for own in whole])
        return cls(state.layers, masks, torch.stack(state.following), filled, sizes, state)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.masks, self.following, self.filled, *([] if self.sizes is None else [self.sizes])]

    def hold(self, other: FixedState) -> bool:
        """Take over what another one says, in these tensors; False where it does not fit into them."""
        own, given = self.tensors, other.tensors
        fits = self.layers == other.layers and len(own) == len(given)
        if not fits or any(a.shape != b.shape or a.device != b.device for a, b in zip(own, given)):
            return False
        for mine, theirs in zip(own, given):
            mine.copy_(theirs)
        self.start = other.start
        return True

    def settled(self) -> CacheState:
        """The same of a length that is known: the host waits for it."""
        filled = self.filled.tolist()
        steps = filled[0] - self.start.lengths[0]
        masks = tuple(mask[:, :length].clone() for mask, length in zip(self.masks, filled))
        sizes = tuple(
            None if self.sizes is None else own[:, :length].clone()
            for own, length in zip(self.masks if self.sizes is None else self.sizes, filled)
        )
        padded = tuple(before or not bool(mask.all()) for before, mask in zip(self.start.padded, masks))
        seen, decoded = self.start.seen + steps, self.start.decoded + steps
        return CacheState(self.layers, masks, tuple(self.following.clone()), padded, seen, decoded, sizes)

    def then(self, new: torch.Tensor, following: torch.Tensor) -> FixedState:
        """With one more place, in other tensors: this one stays as it is until it takes them over, by hold(), so that
        a step that fails can be made again.

        Args:
            new: [B, 1] bool, whether the place holds a token.
            following: [stages, B] int64, the positions after it.
        """
        at = self.filled[:, None, None].expand(-1, len(new), 1)
        masks = self.masks.scatter(2, at, new.expand(len(self.masks), -1, -1))
        return replace(self, masks=masks, following=following, filled=self.filled + 1)

    def picked(self, samples: torch.Tensor) -> FixedState:
        """Of these samples [B'], in other tensors."""
        sizes = None if self.sizes is None else self.sizes.index_select(1, samples)
        masks, following = self.masks.index_select(1, samples), self.following.index_select(1, samples)
        return replace(self, masks=masks, following=following, sizes=sizes, start=self.start.picked(samples))


def _padded(values: torch.Tensor, room: int, value: float) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, room - values.shape[1]), value=value)
