"""Attention masks: what "causal" means here, and how it is combined with a mask."""

from typing import overload

import torch
from torch import Tensor


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [queries, keys], True = attend; bottom-right aligned: the last query sees all keys."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


@overload
def join(mask: Tensor, queries: int, keys: int, causal: bool, device: torch.device) -> Tensor: ...
@overload
def join(mask: None, queries: int, keys: int, causal: bool, device: torch.device) -> Tensor | None: ...
def join(mask: Tensor | None, queries: int, keys: int, causal: bool, device: torch.device) -> Tensor | None:
    """Combines `mask` with causality; None if neither forbids anything.

    `mask` is bool (True = attend) or additive, broadcastable to [..., queries, keys]; the result is of the same kind.
    """
    if not causal or queries == 1:
        return mask
    allowed = causal_mask(queries, keys, device)
    if mask is None:
        return allowed
    return mask & allowed if mask.dtype is torch.bool else mask.masked_fill(~allowed, float("-inf"))
