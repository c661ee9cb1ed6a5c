"""rotary by liger-kernel's rope, for who asks for it by name.

Not taken by itself: it reads the first half of the table only, where the specification allows the halves to differ, and
writes over query and key, so that copies are due. `rotary` next door does neither.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppe_npu.backends import device

from . import turn


def refusal(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> str | None:
    """fp16, bf16, fp32; even head widths up to 1,024; nothing empty; no gradient for the table."""
    return turn.refusal(query, key, cos, sin)


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.rotary`; the two halves of cos and of sin have to be alike."""
    return _Rope.apply(query, key, cos, sin)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        from liger_kernel.ops.rope import rope_forward

        ctx.save_for_backward(cos, sin)
        with device.current(query.device):
            return rope_forward(*_copies(query, key), cos, sin)[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from liger_kernel.ops.rope import rope_backward

        with device.current(query.device):
            return (*rope_backward(*_copies(query, key), *ctx.saved_tensors), None, None)


def _copies(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In memory as [B, S, H, D], as the kernel wants them."""
    return tuple(x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2) for x in tensors)
