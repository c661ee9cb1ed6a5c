"""npu_swiglu: silu(first half) * second half."""

import torch
from torch import Tensor

from ascend_emulator import limits
from ascend_emulator.operators import emulates


@emulates("npu_swiglu")
def swiglu(input: Tensor, dim: int) -> Tensor:
    """Half as large as the input along `dim`."""
    limits.swiglu(input, dim)
    gate, up = input.float().chunk(2, dim)
    return (gate * gate.sigmoid() * up).to(input.dtype)


@emulates("npu_swiglu_backward")
def swiglu_backward(grad_output: Tensor, input: Tensor, dim: int) -> Tensor:
    """The gradient of the input."""
    grad = grad_output.float()
    gate, up = input.float().chunk(2, dim)
    sigmoid = gate.sigmoid()
    return torch.cat((grad * up * sigmoid * (1 + gate * (1 - sigmoid)), grad * gate * sigmoid), dim).to(input.dtype)
