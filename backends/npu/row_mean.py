"""group_mean by Triton kernels that are made for Ascend's cores: whole rows, one after another, in raster order.

The order of every sum is fixed, so every run gives the same bits; in fp32 they are those of the specification on a CPU.
Members are listed by torch's stable sort. Both passes read every token (or gradient) once and write every result once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppe_npu.backends import device
from ppe_npu.backends.common import refused_dtype

from .chips import chip, problem
from .tiles import row_block

LABELS = 2**24  # fp32, in which `listed` sorts labels, holds smaller whole numbers exactly


def refusal(tokens: Tensor, labels: Tensor, counts: Tensor) -> str | None:
    """Limits: fp16, bf16, fp32; triton-ascend; nothing empty; fewer than 2**31 numbers and 2**24 groups in a frame."""
    if reason := refused_dtype("the Triton kernels take", tokens.dtype):
        return reason
    if tokens.numel() == 0 or counts.numel() == 0:
        return "the Triton kernels take no empty tensor"
    if tokens.shape[1] * tokens.shape[2] >= 2**31:
        return "the Triton kernels take frames of fewer than 2**31 numbers"
    if counts.shape[1] >= LABELS:
        return "the Triton kernels take fewer than 2**24 groups"
    return problem(tokens.device)


def group_mean(tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """See `ppe_npu.backends.group_mean`. No second derivative."""
    return _GroupMean.apply(tokens, labels, counts)


class _GroupMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        labels, counts = labels.to(torch.int32).contiguous(), counts.to(torch.int32).contiguous()
        ctx.save_for_backward(labels, counts)
        (frames, count, channels), groups = tokens.shape, counts.shape[1]
        means = torch.empty(frames, groups, channels, dtype=tokens.dtype, device=tokens.device)
        order, starts = listed(labels, counts)
        width, blocks = row_block(chip(tokens.device), channels)
        with device.current(tokens.device):
            arguments = (tokens.contiguous(), order, starts, means, frames * groups * blocks)
            _mean[(_programs(tokens),)](*arguments, count, groups, channels, blocks, WIDTH=width)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        labels, counts = ctx.saved_tensors
        (frames, count), (groups, channels) = labels.shape, gradient.shape[1:]
        shared = torch.empty(frames, count, channels, dtype=gradient.dtype, device=gradient.device)
        width, blocks = row_block(chip(gradient.device), channels)
        with device.current(gradient.device):
            arguments = (gradient.contiguous(), labels, counts, shared, frames * count * blocks)
            _share[(_programs(gradient),)](*arguments, count, groups, channels, blocks, WIDTH=width)
        return shared, None, None


def listed(labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """int32 [F, N], token indices by group in raster order; int32 [F, M + 1], the start of each group in that list.

    Labels are sorted as fp32, which vector cores can sort; `refusal` limits them to numbers that fp32 holds exactly.
    """
    groups = counts.shape[1]
    keys = torch.where(labels < 0, groups, labels).to(torch.float32)
    order = torch.sort(keys, dim=1, stable=True).indices.to(torch.int32)
    starts = torch.nn.functional.pad(counts.cumsum(1, dtype=torch.int32), (1, 0))
    return order, starts


def _programs(tensor: Tensor) -> int:
    return chip(tensor.device).vectors


@triton.jit
def _mean(
    x_ptr, order_ptr, starts_ptr, means_ptr, tasks, num_tokens, num_groups, num_channels, blocks, WIDTH: tl.constexpr
):
    """A task averages WIDTH channels of one group."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        group = task // blocks  # counted over all frames
        frame = group // num_groups
        channel = (task % blocks) * WIDTH + tl.arange(0, WIDTH)
        inside = channel < num_channels
        source = x_ptr + frame.to(tl.int64) * num_tokens * num_channels
        start = tl.load(starts_ptr + group + frame)
        stop = tl.load(starts_ptr + group + frame + 1)
        total = tl.zeros((WIDTH,), tl.float32)
        for place in range(start, stop):
            token = tl.load(order_ptr + frame * num_tokens + place)
            total += tl.load(source + token * num_channels + channel, mask=inside, other=0.0).to(tl.float32)
        mean = total / tl.maximum(stop - start, 1).to(tl.float32)
        target = means_ptr + group.to(tl.int64) * num_channels + channel
        tl.store(target, mean.to(means_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _share(
    grad_ptr, labels_ptr, counts_ptr, out_ptr, tasks, num_tokens, num_groups, num_channels, blocks, WIDTH: tl.constexpr
):
    """A task writes the gradient of one token in WIDTH channels: its group's gradient over the group's size."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        token = task // blocks  # counted over all frames
        channel = (task % blocks) * WIDTH + tl.arange(0, WIDTH)
        inside = channel < num_channels
        label = tl.load(labels_ptr + token)
        target = out_ptr + token.to(tl.int64) * num_channels + channel
        if label >= 0:
            group = (token // num_tokens) * num_groups + label
            size = tl.maximum(tl.load(counts_ptr + group), 1).to(tl.float32)
            x = tl.load(grad_ptr + group.to(tl.int64) * num_channels + channel, mask=inside, other=0.0)
            tl.store(target, (x.to(tl.float32) / size).to(out_ptr.dtype.element_ty), mask=inside)
        else:
            tl.store(target, tl.zeros((WIDTH,), out_ptr.dtype.element_ty), mask=inside)
