"""Means of groups on a CPU: rows are summed group by group, without first copying the tokens into that order."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def group_mean(tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """See `ppe_npu.backends.group_mean`. Rows are added in raster order, so the bits are the reference's."""
    return _Means.apply(tokens, labels, counts)


class _Means(torch.autograd.Function):
    """Has its own derivative, because that of torch's embedding_bag exists only once, and only in backward mode."""

    @staticmethod
    def forward(tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        (frames, groups), channels = counts.shape, tokens.shape[2]
        if not tokens.numel():  # embedding_bag takes no empty tensor
            return tokens.new_zeros(frames, groups, channels)
        wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).flatten(0, 1)
        first = functional.pad(counts.flatten().cumsum(0), (1, 0))
        order = _slots(labels, groups).sort(stable=True).indices
        sums = functional.embedding_bag(order, wide, first, mode="sum")[:-1]
        return sums.view(frames, groups, channels).div_(counts.clamp_min(1)[:, :, None]).to(tokens.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, labels, counts = inputs
        ctx.save_for_backward(labels, counts)
        ctx.save_for_forward(labels, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        labels, counts = ctx.saved_tensors
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        shares = functional.pad((wide / counts.clamp_min(1)[:, :, None]).flatten(0, 1), (0, 0, 0, 1))  # 0: no group
        spread = shares.index_select(0, _slots(labels, counts.shape[1]))
        return spread.view(*labels.shape, gradient.shape[2]).to(gradient.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Means.apply(tangent, *ctx.saved_tensors)


def _slots(labels: Tensor, groups: int) -> Tensor:
    """int64 [F * N], the group of each token, numbered over all frames; one number more for tokens in no group."""
    offsets = torch.arange(len(labels), device=labels.device)[:, None] * groups
    return torch.where(labels < 0, len(labels) * groups, labels + offsets).flatten()
