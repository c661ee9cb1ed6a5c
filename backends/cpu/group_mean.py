"""Means of groups on a CPU: rows are added where they stand, group by group, without a copy of the tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def group_mean(tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """See `ppe_npu.backends.group_mean`. A group's rows are added in raster order, as by the reference, bit for bit."""
    return _Means.apply(tokens, labels, counts)


class _Means(torch.autograd.Function):
    """A derivative of its own: that of torch's bags of rows can be taken once, and backward only."""

    @staticmethod
    def forward(tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        (frames, groups), channels = counts.shape, tokens.shape[2]
        if not tokens.numel():  # torch makes no bags of them
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
        shares = functional.pad((wide / counts.clamp_min(1)[:, :, None]).flatten(0, 1), (0, 0, 0, 1))  # 0 for no group
        spread = shares.index_select(0, _slots(labels, counts.shape[1]))
        return spread.view(*labels.shape, gradient.shape[2]).to(gradient.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Means.apply(tangent, *ctx.saved_tensors)


def _slots(labels: Tensor, groups: int) -> Tensor:
    """[F N] int64 the group of each token among those of all frames; what is in no group comes last, in one more."""
    offsets = torch.arange(len(labels), device=labels.device)[:, None] * groups
    return torch.where(labels < 0, len(labels) * groups, labels + offsets).flatten()
