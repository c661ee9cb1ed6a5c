"""npu_rotary_mul: input * cos + rotated input * sin."""

import torch
from torch import Tensor

from ascend_emulator import limits
from ascend_emulator.operators import emulates


@emulates("npu_rotary_mul")
def rotary_mul(input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str) -> Tensor:
    """r1 is cos and r2 is sin, both of the full width. "half" rotates (x[i], x[i + D/2]), else (x[2i], x[2i + 1])."""
    limits.rotary(input, r1, r2, rotary_mode)
    return (input.float() * r1.float() + _rotated(input.float(), rotary_mode) * r2.float()).to(input.dtype)


@emulates("npu_rotary_mul_backward")
def rotary_mul_backward(
    grad: Tensor, input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, cos and sin, all in the input's dtype."""
    upstream, x, cos, sin = (tensor.float() for tensor in (grad, input, r1, r2))
    # The rotation is orthogonal, and twice a rotation is the opposite: its transpose is its negative.
    dx = upstream * cos - _rotated(upstream * sin, rotary_mode)
    dcos, dsin = upstream * x, upstream * _rotated(x, rotary_mode)
    return tuple(tensor.to(input.dtype) for tensor in (dx, dcos.sum_to_size(r1.shape), dsin.sum_to_size(r2.shape)))


def _rotated(x: Tensor, mode: str) -> Tensor:
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat((-second, first), -1)
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
