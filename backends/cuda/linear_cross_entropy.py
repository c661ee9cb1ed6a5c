"""linear_cross_entropy by liger-kernel, in our own autograd function. Gradients are computed in the forward pass.

Liger's own autograd function scales the saved gradients in place, so a second backward pass would scale them twice, and
it waits for the device to decide whether to scale. The forward pass waits for the device once, to count the labels.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppe_npu.backends import device
from ppe_npu.backends.common import IGNORED, refused_dtype


def refusal(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORED,
    chunk_size: int = 1024,
    reduction: str = "mean",
) -> str | None:
    """Limits: fp16, bf16, fp32; nothing empty."""
    if reason := refused_dtype("Liger's linear cross entropy takes", hidden.dtype):
        return reason
    if hidden.numel() == 0 or weight.numel() == 0:
        return "Liger's linear cross entropy takes no empty tensor"
    return device.triton_problem(hidden.device)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORED,
    chunk_size: int = 1024,
    reduction: str = "mean",
) -> Tensor:
    """See `ppe_npu.backends.linear_cross_entropy`. No second derivative.

    The chunks are those of `chunk_size`. Liger's own chunks hold as many logits as `hidden` has numbers, so they get
    shorter with fewer labels: with 66 labels and a vocabulary of 150,000, a chunk is one token, for which Liger reads
    all weights and adds to all their gradients.
    """
    wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight)]
    chunks = math.ceil(len(labels) / chunk_size)
    budget = math.ceil(weight.shape[0] / (weight.shape[1] * chunks))  # from which Liger derives this number of chunks
    return _LinearCrossEntropy.apply(hidden, weight, labels, ignore_index, reduction, budget, wanted)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, ignore_index, reduction, budget, wanted):
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

        with device.current(hidden.device):
            loss, *_, hidden_gradient, weight_gradient, _ = fused_linear_cross_entropy_forward(
                hidden.contiguous(),
                weight.contiguous(),
                labels.contiguous(),
                ignore_index=ignore_index,
                reduction=reduction,
                accum_dtype=torch.float32,
                compute_gradients=any(wanted),
                weight_requires_grad=wanted[1],
                chunk_mem_const=budget,
            )
        ctx.save_for_backward(hidden_gradient if wanted[0] else None, weight_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        scaled = [None if saved is None else (saved * gradient).to(saved.dtype) for saved in ctx.saved_tensors]
        return (*scaled, None, None, None, None, None)
