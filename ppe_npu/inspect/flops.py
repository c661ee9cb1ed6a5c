"""FLOPs that torch counts while a model runs: those of matrix products, where a multiply-add counts as two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """torch's counter, extended by the fused attention of CPUs, which torch does not count. Masked places count.

    The attention of flash-attn and of torch_npu is not counted.
    """
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {
        forward: lambda query, key, value, *_, **__: _attention(query, key, value, 1, 1),
        backward: lambda _, query, key, value, *__, **___: _attention(query, key, value, 3, 2),  # scores again
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention(query: Any, key: Any, value: Any, with_query: int, with_value: int) -> int:
    """FLOPs from shapes [B, heads, tokens, width]: `with_query` products of all pairs over the width of a query, and
    `with_value` over that of a value. torch's own formula (2.10) requires as many key heads as query heads."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (with_query * width + with_value * value[3])


@contextlib.contextmanager
def within(module: torch.nn.Module | None) -> Iterator[list[int]]:
    """The FLOPs of a module's calls while the context is open, one number per call; empty without a module."""
    found: list[int] = []
    if module is None:
        yield found
        return
    forward, own = module.forward, vars(module).get("forward")  # own: set by a step inside the tower

    def counting(*args: Any, **kwargs: Any) -> Any:
        with flop_counter() as counter:
            out = forward(*args, **kwargs)
        found.append(counter.get_total_flops())
        return out

    module.forward = counting
    try:
        yield found
    finally:
        del module.forward
        if own is not None:
            module.forward = own
