"""swiglu by liger-kernel's kernels, in our own autograd function.

Liger's own autograd function overwrites gate and up with their gradients behind autograd's back, so any other use of
these tensors, or a second backward pass, gets wrong numbers. Here copies are overwritten.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppe_npu.backends import device
from ppe_npu.backends.common import refused_dtype

WIDEST = 65536  # because one program holds a whole row


def refusal(gate: Tensor, up: Tensor) -> str | None:
    """Limits: fp16, bf16, fp32; widths up to 65,536; at least one dimension; nothing empty."""
    if reason := refused_dtype("Liger's swiglu takes", gate.dtype):
        return reason
    if gate.dim() == 0 or gate.numel() == 0:
        return "Liger's swiglu takes neither empty tensors nor scalars"
    if gate.shape[-1] > WIDEST:
        return f"Liger's swiglu takes widths up to {WIDEST:,}"
    return device.triton_problem(gate.device)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `ppe_npu.backends.swiglu`. No second derivative."""
    return _SwiGLU.apply(gate, up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        from liger_kernel.ops.swiglu import swiglu_forward

        ctx.save_for_backward(gate, up)
        return swiglu_forward(gate.contiguous(), up.contiguous())[2]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        from liger_kernel.ops.swiglu import swiglu_backward

        width = gradient.shape[-1]
        copies = (x.clone(memory_format=torch.contiguous_format).view(-1, width) for x in ctx.saved_tensors)
        return swiglu_backward(*copies, gradient.contiguous())
