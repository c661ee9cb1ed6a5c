"""group_mean as a product with a one-hot matrix: no atomics, so every run gives the same bits."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import device


def group_mean(tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """See `ppe_npu.backends.group_mean`. Allocates fp32 [F, M, N] and [F, N, C]. No second derivative."""
    return _OneHotMean.apply(tokens, labels, counts)


class _OneHotMean(torch.autograd.Function):
    """Has its own backward pass, because autograd's would run outside `exact_matmul`, with TF32 or HF32 on."""

    @staticmethod
    def forward(ctx, tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(labels, counts)
        ctx.dtype = tokens.dtype
        wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        with device.exact_matmul():
            sums = torch.bmm(_one_hot(labels, counts, wide.dtype), wide)
        return (sums / _divisor(counts, wide.dtype)).to(tokens.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        labels, counts = ctx.saved_tensors
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        with device.exact_matmul():
            shared = torch.bmm(_one_hot(labels, counts, wide.dtype).mT, wide / _divisor(counts, wide.dtype))
        return shared.to(ctx.dtype), None, None


def _one_hot(labels: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    """[F, M, N]: 1 where token n is in group m. A label of -1 means no group (torch's one_hot does not take it)."""
    groups = torch.arange(counts.shape[1], device=labels.device)
    return (labels[:, None, :] == groups[None, :, None]).to(dtype)


def _divisor(counts: Tensor, dtype: torch.dtype) -> Tensor:
    return counts.clamp(min=1).to(dtype).unsqueeze(-1)
