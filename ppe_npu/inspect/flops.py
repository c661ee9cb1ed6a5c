"""FLOPs that torch counts while a model runs: of products, a multiplication and an addition being two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """torch's counter, which by itself does not see a CPU's fused attention. Masked places count.

    It does not see the attention of flash-attn and of torch_npu: where that is used, it is left out.
    """
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {
        forward: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        backward: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


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
