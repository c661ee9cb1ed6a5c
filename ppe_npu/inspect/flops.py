"""FLOPs that torch counts while a model runs: of products, a multiplication and an addition being two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """torch's counter, which by itself does not see a CPU's fused attention. Masked places count.

    It does not see the attention of flash-attn and of torch_npu: where that is used, it is left out.
    """
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {
        forward: lambda query, key, value, *_, **__: _attention(query, key, value, 1, 1),
        backward: lambda _, query, key, value, *__, **___: _attention(query, key, value, 3, 2),  # scores once more
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention(query: Any, key: Any, value: Any, with_query: int, with_value: int) -> int:
    """FLOPs by shapes [B, heads, tokens, width]: of so many products of all pairs as wide as a query, and as a value.
    torch's own formula (2.10) wants as many heads of keys as of queries."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (with_query * width + with_value * value[3])


@contextlib.contextmanager
def within(module: torch.nn.Module | None) -> Iterator[list[int]]:
    """The FLOPs of a module's calls while it is open, one number a call; of no module none."""
    found: list[int] = []
    if module is None:
        yield found
        return
    forward, own = module.forward, vars(module).get("forward")  # own: that of a step inside the tower

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
