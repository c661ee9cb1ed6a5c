"""group_mean by Triton kernels without atomics: every sum has a fixed order, so every run gives the same bits.

The first kernel lists the token indices of each group. It does not sort: it counts how many tokens come before each one
in the list, by N x N comparisons of labels in registers. In the second kernel, one program reads the tokens of one
group and writes their mean. The forward and the backward pass read every token (or gradient) once and write every
result once.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppe_npu.backends import device
from ppe_npu.backends.common import refused_dtype

BLOCK_M, BLOCK_N = 128, 32  # labels per program of _list_groups, and labels that it compares them with at a time


def refusal(tokens: Tensor, labels: Tensor, counts: Tensor) -> str | None:
    """Limits: fp16, bf16, fp32; nothing empty; compute capability 8.0 or later."""
    if reason := refused_dtype("the Triton kernels take", tokens.dtype):
        return reason
    if tokens.numel() == 0 or counts.numel() == 0:
        return "the Triton kernels take no empty tensor"
    return device.triton_problem(tokens.device)


def group_mean(tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """See `ppe_npu.backends.group_mean`. No second derivative."""
    return _GroupMean.apply(tokens, labels, counts)


class _GroupMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        labels, counts = labels.contiguous(), counts.contiguous()
        ctx.save_for_backward(labels, counts)
        (frames, count, channels), groups = tokens.shape, counts.shape[1]
        means = torch.empty(frames, groups, channels, dtype=tokens.dtype, device=tokens.device)
        block_n, block_c = block(count / groups, channels)
        num_blocks = triton.cdiv(channels, block_c)
        with device.current(tokens.device):
            order, starts = _listed(labels, groups)
            arguments = (tokens.contiguous(), order, starts, counts, means, count, groups, channels, num_blocks)
            _mean[(frames * groups * num_blocks,)](*arguments, BLOCK_N=block_n, BLOCK_C=block_c)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        labels, counts = ctx.saved_tensors
        (frames, count), (groups, channels) = labels.shape, gradient.shape[1:]
        shared = torch.empty(frames, count, channels, dtype=gradient.dtype, device=gradient.device)
        block_n, block_c = block(count, channels)
        num_blocks = triton.cdiv(channels, block_c)
        grid = (frames * triton.cdiv(count, block_n) * num_blocks,)
        with device.current(gradient.device):
            arguments = (gradient.contiguous(), labels, counts, shared, count, groups, channels, num_blocks)
            _share[grid](*arguments, BLOCK_N=block_n, BLOCK_C=block_c)
        return shared, None, None


def block(tokens: float, channels: int) -> tuple[int, int]:
    """(BLOCK_N, BLOCK_C), at most 4,096 numbers per block. tokens: tokens that a program reads in all, on average."""
    width = min(1024, max(16, triton.next_power_of_2(channels)))
    return min(4096 // width, max(4, triton.next_power_of_2(math.ceil(tokens)))), width


def _listed(labels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """int32 [F, N], token indices by group in raster order; int32 [F, M + 1], the start of each group in that list."""
    frames, count = labels.shape
    order = torch.empty(frames, count, dtype=torch.int32, device=labels.device)
    starts = torch.empty(frames, groups + 1, dtype=torch.int32, device=labels.device)
    num_blocks = triton.cdiv(max(count, groups + 1), BLOCK_M)
    _list_groups[(frames * num_blocks,)](
        labels, order, starts, count, groups, num_blocks, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N
    )
    return order, starts


@triton.jit
def _list_groups(
    labels_ptr, order_ptr, starts_ptr, num_tokens, num_groups, num_blocks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program finds the positions of BLOCK_M tokens in the list, and the starts of BLOCK_M groups."""
    pid = tl.program_id(0)
    frame = (pid // num_blocks).to(tl.int64)
    offs_m = (pid % num_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    labels_ptr += frame * num_tokens
    labels_m = tl.load(labels_ptr + offs_m, mask=offs_m < num_tokens, other=-1).to(tl.int32)
    place = tl.zeros((BLOCK_M,), tl.int32)
    begin = tl.zeros((BLOCK_M,), tl.int32)
    for start_n in range(0, num_tokens, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        labels_n = tl.load(labels_ptr + offs_n, mask=offs_n < num_tokens, other=-1).to(tl.int32)
        grouped = labels_n[None, :] >= 0
        same = (labels_n[None, :] == labels_m[:, None]) & (offs_n[None, :] < offs_m[:, None])
        place += tl.sum((grouped & (same | (labels_n[None, :] < labels_m[:, None]))).to(tl.int32), axis=1)
        begin += tl.sum((grouped & (labels_n[None, :] < offs_m[:, None])).to(tl.int32), axis=1)
    tl.store(order_ptr + frame * num_tokens + place, offs_m, mask=labels_m >= 0)
    tl.store(starts_ptr + frame * (num_groups + 1) + offs_m, begin, mask=offs_m <= num_groups)


@triton.jit
def _mean(
    x_ptr, order_ptr, starts_ptr, counts_ptr, means_ptr, num_tokens, num_groups, num_channels, num_blocks,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program averages BLOCK_C channels of one group."""
    pid = tl.program_id(0)
    group = (pid // num_blocks).to(tl.int64)  # counted over all frames
    frame = group // num_groups
    offs_c = (pid % num_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < num_channels
    x_ptr += frame * num_tokens * num_channels
    start = tl.load(starts_ptr + group + frame)
    stop = tl.load(starts_ptr + group + frame + 1)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start_n in range(start, stop, BLOCK_N):
        offs = start_n + tl.arange(0, BLOCK_N)
        token = tl.load(order_ptr + frame * num_tokens + offs, mask=offs < stop, other=0).to(tl.int64)
        mask = (offs < stop)[:, None] & mask_c[None, :]
        x = tl.load(x_ptr + token[:, None] * num_channels + offs_c[None, :], mask=mask, other=0.0)
        total += tl.sum(x.to(tl.float32), axis=0)
    size = tl.maximum(tl.load(counts_ptr + group), 1).to(tl.float32)
    mean = tl.div_rn(total, tl.zeros((BLOCK_C,), tl.float32) + size)
    tl.store(means_ptr + group * num_channels + offs_c, mean.to(means_ptr.dtype.element_ty), mask=mask_c)


@triton.jit
def _share(
    grad_ptr, labels_ptr, counts_ptr, out_ptr, num_tokens, num_groups, num_channels, num_blocks,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program writes the gradient of BLOCK_N tokens in BLOCK_C channels: their group's gradient over its size."""
    pid = tl.program_id(0)
    num_blocks_n = tl.cdiv(num_tokens, BLOCK_N)
    frame = (pid // (num_blocks * num_blocks_n)).to(tl.int64)
    offs_n = (pid // num_blocks % num_blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_c = (pid % num_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    label = tl.load(labels_ptr + frame * num_tokens + offs_n, mask=offs_n < num_tokens, other=-1)
    group = frame * num_groups + tl.maximum(label, 0)
    size = tl.maximum(tl.load(counts_ptr + group), 1).to(tl.float32)
    mask = (offs_n < num_tokens)[:, None] & (offs_c < num_channels)[None, :]
    mask_load = mask & (label >= 0)[:, None]
    x = tl.load(grad_ptr + group[:, None] * num_channels + offs_c[None, :], mask=mask_load, other=0.0).to(tl.float32)
    share = tl.div_rn(x, tl.zeros((BLOCK_N, BLOCK_C), tl.float32) + size[:, None])
    target = out_ptr + (frame * num_tokens + offs_n)[:, None] * num_channels + offs_c[None, :]
    tl.store(target, share.to(out_ptr.dtype.element_ty), mask=mask)
