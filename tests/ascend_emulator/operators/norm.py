"""npu_rms_norm: one rounding, at the end."""

import torch
from torch import Tensor

from ascend_emulator import limits
from ascend_emulator.operators import emulates


@emulates("npu_rms_norm")
def rms_norm(input: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Returns gamma * x / rms(x) in the input's dtype, and 1 / rms in fp32 with normalized dimensions of size 1."""
    limits.rms_norm(input, gamma)
    dims = _normalized(input, gamma)
    rstd = torch.rsqrt(input.float().square().mean(dims, keepdim=True) + epsilon)
    return (input.float() * rstd * gamma.float()).to(input.dtype), rstd


@emulates("npu_rms_norm_backward")
def rms_norm_backward(dy: Tensor, input: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the input, in its dtype, and of gamma, in fp32 as torch_npu's kernel allocates it."""
    dims = _normalized(input, gamma)
    scaled, normal = dy.float() * gamma.float(), input.float() * rstd
    dx = rstd * (scaled - normal * (scaled * normal).mean(dims, keepdim=True))
    leading = tuple(range(input.dim() - gamma.dim()))
    dgamma = dy.float() * normal
    return dx.to(input.dtype), dgamma.sum(leading) if leading else dgamma


def _normalized(x: Tensor, gamma: Tensor) -> tuple[int, ...]:
    return tuple(range(x.dim() - gamma.dim(), x.dim()))
