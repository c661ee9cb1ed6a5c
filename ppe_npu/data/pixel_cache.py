"""Processed pixels kept in memory between batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


class PixelCache:
    """Processed pixels by file. Above max_bytes the least recently used ones are dropped."""

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[Any, tuple[torch.Tensor, ...]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Any) -> tuple[torch.Tensor, ...] | None:
        """The value that was put under key, or None."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key]

    def put(self, key: Any, value: tuple[torch.Tensor, ...]) -> None:
        """Keep value; one that alone is larger than max_bytes is not kept."""
        size = _bytes(value)
        if size > self.max_bytes or key in self._held:
            return
        self._held[key] = value
        self._bytes += size
        while self._bytes > self.max_bytes:
            self._bytes -= _bytes(self._held.popitem(last=False)[1])


def cached(sources: Sequence[Any], cache: PixelCache | None, tag: tuple, process) -> list[tuple[torch.Tensor, ...]]:
    """process() for the sources that the cache lacks, each file once; results in the order of sources."""
    keys = [(*tag, str(s)) if isinstance(s, (str, Path)) else (*tag, id(s)) for s in sources]
    held = {key: found for key in keys if cache and isinstance(key[-1], str) and (found := cache.get(key))}
    todo = {key: source for key, source in zip(keys, sources) if key not in held}
    if todo:
        for key, value in zip(todo, process(list(todo.values()))):
            held[key] = value
            if cache and isinstance(key[-1], str):  # an object's id may later be that of another object
                cache.put(key, value)
    return [held[key] for key in keys]


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
