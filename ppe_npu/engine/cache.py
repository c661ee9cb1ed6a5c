"""What later steps need to know about a compressed prompt; it is kept with the KV cache.

For a cache of fixed length (transformers' static caches) it is held in tensors of fixed length, too. A step changes
their contents and nothing else: no shape, no number on the host, no object. So the decoding step is compiled once for
all steps, and a recording of it (CUDA graphs, ACL graphs) can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ppe_npu.errors import InputError


@dataclass(frozen=True)
class CacheState:
    """The places that a KV cache holds, for each stage: the layers before the first merge inside the LLM, and those
    from each merge on.

    Args:
        layers: the first layer of each stage after the first.
        masks: for each stage [B, L] bool, True at the cached places that hold a token.
        following: for each stage [B] int64, the position of the next token.
        padded: for each stage, whether its mask may contain False; known on the host.
        seen: how many columns of input_ids (padding included) the cache stands for, before compression.
        decoded: how many places came after the last compressed prompt; only these can be cropped.
        sizes: for each stage [B, L] int64, how many tokens each place counts for in proportional attention; None: one
            each.
    """

    layers: tuple[int, ...]
    masks: tuple[torch.Tensor, ...]
    following: tuple[torch.Tensor, ...]
    padded: tuple[bool, ...]
    seen: int = 0
    decoded: int = 0
    sizes: tuple[torch.Tensor | None, ...] = ()

    @classmethod
    def empty(cls, layers: tuple[int, ...], batch: int, device: torch.device) -> CacheState:
        """The state before the first token."""
        stages = 1 + len(layers)
        mask = torch.zeros(batch, 0, dtype=torch.bool, device=device)
        following = torch.zeros(batch, dtype=torch.long, device=device)
        return cls(layers, (mask,) * stages, (following,) * stages, (False,) * stages, sizes=(None,) * stages)

    @classmethod
    def of_others(cls, mask: torch.Tensor, ahead: torch.Tensor | int) -> CacheState:
        """The state of a cache that other code has filled with one place per column, for a model that merges nothing.

        Args:
            mask: [B, L] bool, True at the places that hold a token.
            ahead: [B] the next position minus the number of tokens.
        """
        length = mask.shape[1]
        padded = bool((~mask).any())
        return cls((), (mask,), (mask.sum(1) + ahead,), (padded,), length, length, (None,))

    def settled(self) -> CacheState:
        """Itself, as a FixedState gives its contents."""
        return self

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of cached places of each stage."""
        return tuple(mask.shape[1] for mask in self.masks)

    def then(
        self,
        new: tuple[torch.Tensor, ...],
        following: tuple[torch.Tensor, ...],
        padded: tuple[bool, ...],
        seen: int,
        compressed: bool,
    ) -> CacheState:
        """The state after `new` places, for each stage [B, N] bool, True at tokens."""
        masks = tuple(torch.cat(pair, dim=1) for pair in zip(self.masks, new))
        decoded = 0 if compressed else self.decoded + new[0].shape[1]
        padded = tuple(before or after for before, after in zip(self.padded, padded))
        grown = zip(self.sizes, self.masks, new)
        sizes = tuple(None if own is None else joined_sizes(own, mask, None, added) for own, mask, added in grown)
        return CacheState(self.layers, masks, following, padded, self.seen + seen, decoded, sizes)

    def repeated(self, batch: int) -> CacheState:
        """The state of a cache whose samples were repeated (batch_repeat_interleave) to make a batch of this size.

        Raises:
            InputError: the batch is not a multiple of this state's.
        """
        own = len(self.masks[0])
        if batch == own:
            return self
        if batch % own:
            raise InputError(
                f"the KV cache holds a batch of {own}, but the new tokens one of {batch}: give {own} samples or "
                "a multiple"
            )
        return self._each(lambda part: part.repeat_interleave(batch // own, dim=0))

    def picked(self, samples: torch.Tensor) -> CacheState:
        """The state of a cache that was reduced to these of its samples [N], in this order."""
        return self._each(lambda part: part.index_select(0, samples.to(part.device)))

    def _each(self, of: Callable[[torch.Tensor], torch.Tensor]) -> CacheState:
        """The state with `of` applied to every tensor [B, ...]."""
        masks, following = (tuple(map(of, parts)) for parts in (self.masks, self.following))
        sizes = tuple(None if part is None else of(part) for part in self.sizes)
        return replace(self, masks=masks, following=following, sizes=sizes)

    def cropped(self, stage: int, length: int) -> CacheState:
        """The state after a stage's layers were cut to `length` places, as assisted decoding does to reject tokens.

        Raises:
            InputError: part of the compressed prompt was cut off, or the cache is longer than this state.
        """
        whole = self.masks[stage].shape[1]
        removed = whole - length
        if removed == 0:
            return self
        if removed < 0 or removed > self.decoded:
            raise InputError(
                f"the KV cache holds {length} places, but the compressed prompt has {whole - self.decoded}, or {whole} "
                "with all decoded tokens: cut off only decoded tokens"
            )
        masks = tuple(mask[:, : mask.shape[1] - removed] for mask in self.masks)
        cut = self.masks[0][:, -removed:].sum(1)
        following = tuple(position - cut for position in self.following)
        sizes = tuple(None if part is None else part[:, : part.shape[1] - removed] for part in self.sizes)
        seen, decoded = self.seen - removed, self.decoded - removed
        return replace(self, masks=masks, following=following, sizes=sizes, seen=seen, decoded=decoded)


@dataclass
class FixedState:
    """The CacheState of a cache with room for a fixed number of places.

    Args:
        layers: as in CacheState.
        masks: [stages, B, room] bool, True at the places that hold a token.
        following: [stages, B] int64, the position of the next token.
        filled: [stages] int64, how many places are taken, which is the index of the next token's place.
        sizes: [stages, B, room] int64, or None, as in CacheState.
        start: the state that this one was made from. A step does not read it.
    """

    layers: tuple[int, ...]
    masks: torch.Tensor
    following: torch.Tensor
    filled: torch.Tensor
    sizes: torch.Tensor | None
    start: CacheState

    @classmethod
    def of(cls, state: CacheState, room: int) -> FixedState:
        """From a state. Raises InputError if its places do not fit."""
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
        """Copy another state into this one's tensors; return False if it does not fit into them."""
        own, given = self.tensors, other.tensors
        fits = self.layers == other.layers and len(own) == len(given)
        if not fits or any(a.shape != b.shape or a.device != b.device for a, b in zip(own, given)):
            return False
        for mine, theirs in zip(own, given):
            mine.copy_(theirs)
        self.start = other.start
        return True

    def settled(self) -> CacheState:
        """This state as a CacheState, for anything but a single next token. The host waits to read the lengths."""
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
        """The state after one more place, in new tensors: this one stays unchanged until it copies them with hold(), so
        that a step that fails can be repeated.

        Args:
            new: [B, 1] bool, whether the place holds a token.
            following: [stages, B] int64, the positions after it.
        """
        at = self.filled[:, None, None].expand(-1, len(new), 1)
        masks = self.masks.scatter(2, at, new.expand(len(self.masks), -1, -1))
        return replace(self, masks=masks, following=following, filled=self.filled + 1)

    def picked(self, samples: torch.Tensor) -> FixedState:
        """The state of these samples [B'], in new tensors."""
        sizes = None if self.sizes is None else self.sizes.index_select(1, samples)
        masks, following = self.masks.index_select(1, samples), self.following.index_select(1, samples)
        return replace(self, masks=masks, following=following, sizes=sizes, start=self.start.picked(samples))


def joined_sizes(
    before: torch.Tensor | None, cached: torch.Tensor, after: torch.Tensor | None, new: torch.Tensor
) -> torch.Tensor | None:
    """[B, L + N] sizes of cached places [B, L] and of the new places [B, N] after them, or None for one each."""
    if before is None and after is None:
        return None
    parts = ((before, cached), (after, new))
    return torch.cat([places.long().clamp_min(1) if own is None else own for own, places in parts], dim=1)


def _padded(values: torch.Tensor, room: int, value: float) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, room - values.shape[1]), value=value)


def kv_bytes(cache: Any) -> int:
    """Bytes of all keys and values that a transformers cache holds. Quantized ones count with all their parts: the
    tensors inside a tensor subclass, or those that a backend packs into a tuple or a dict."""
    layers = getattr(cache, "layers", ())
    filled = (layer for layer in layers if getattr(layer, "is_initialized", True))
    names = ("keys", "values", "_quantized_keys", "_quantized_values")
    parts: list[Any] = [getattr(layer, name, None) for layer in filled for name in names]
    total = 0
    while parts:
        part = parts.pop()
        if isinstance(part, (tuple, list)):
            parts += part
        elif isinstance(part, dict):
            parts += part.values()
        elif hasattr(part, "__tensor_flatten__"):
            parts += [getattr(part, name) for name in part.__tensor_flatten__()[0]]
        elif isinstance(part, torch.Tensor):
            total += part.numel() * part.element_size()  # torch.compile does not support nbytes
    return total
