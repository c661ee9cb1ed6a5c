"""group_mean by Triton kernels: no atomics, every sum in raster order, so the same bits on every run.

A first kernel lists the tokens of each group (how many stand before a token in the list is counted, N x N comparisons
of labels in registers; no sort). A program of the second reads the rows of one group and writes their mean: every token
is read once, every mean written once. The backward pass is one read and one write, too.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppe_npu.backends import device

LABELS, OTHERS = 128, 32  # of one program; compared at a time


def refusal(tokens: Tensor, labels: Tensor, counts: Tensor) -> str | None:
    """fp16, bf16, fp32; compute capability 8.0 or later."""
    if tokens.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the Triton kernels take fp16, bf16 and fp32, not {tokens.dtype}"
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
        rows, width = block(count / groups, channels)
        blocks = triton.cdiv(channels, width)
        with device.current(tokens.device):
            order, starts = _listed(labels, groups)
            arguments = (tokens.contiguous(), order, starts, counts, means, count, groups, channels, blocks)
            _mean[(frames * groups * blocks,)](*arguments, ROWS=rows, WIDTH=width)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        labels, counts = ctx.saved_tensors
        (frames, count), (groups, channels) = labels.shape, gradient.shape[1:]
        shared = torch.empty(frames, count, channels, dtype=gradient.dtype, device=gradient.device)
        rows, width = block(count, channels)
        blocks = triton.cdiv(channels, width)
        grid = (frames * triton.cdiv(count, rows) * blocks,)
        with device.current(gradient.device):
            arguments = (gradient.contiguous(), labels, counts, shared, count, groups, channels, blocks)
            _share[grid](*arguments, ROWS=rows, WIDTH=width)
        return shared, None, None


def block(tokens: float, channels: int) -> tuple[int, int]:
    """Tokens and channels that a program holds at a time: up to 4,096 numbers. `tokens`: how many it reads in all."""
    width = min(1024, max(16, triton.next_power_of_2(channels)))
    return min(4096 // width, max(4, triton.next_power_of_2(math.ceil(tokens)))), width


def _listed(labels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """int32 [F, N]: the tokens by group, in raster order; and int32 [F, M + 1]: where each group begins in it."""
    frames, count = labels.shape
    order = torch.empty(frames, count, dtype=torch.int32, device=labels.device)
    starts = torch.empty(frames, groups + 1, dtype=torch.int32, device=labels.device)
    blocks = triton.cdiv(max(count, groups + 1), LABELS)
    _list_groups[(frames * blocks,)](labels, order, starts, count, groups, blocks, LABELS=LABELS, OTHERS=OTHERS)
    return order, starts


@triton.jit
def _list_groups(labels, order, starts, count, groups, blocks, LABELS: tl.constexpr, OTHERS: tl.constexpr):
    """One program: the places of some tokens, and the beginnings of as many groups."""
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    mine = (tl.program_id(0) % blocks) * LABELS + tl.arange(0, LABELS)
    labels += frame * count
    own = tl.load(labels + mine, mask=mine < count, other=-1).to(tl.int32)
    place = tl.zeros((LABELS,), tl.int32)
    begin = tl.zeros((LABELS,), tl.int32)
    for start in range(0, count, OTHERS):
        other = start + tl.arange(0, OTHERS)
        label = tl.load(labels + other, mask=other < count, other=-1).to(tl.int32)
        grouped = label[None, :] >= 0
        same = (label[None, :] == own[:, None]) & (other[None, :] < mine[:, None])
        place += tl.sum((grouped & (same | (label[None, :] < own[:, None]))).to(tl.int32), axis=1)
        begin += tl.sum((grouped & (label[None, :] < mine[:, None])).to(tl.int32), axis=1)
    tl.store(order + frame * count + place, mine, mask=own >= 0)
    tl.store(starts + frame * (groups + 1) + mine, begin, mask=mine <= groups)


@triton.jit
def _mean(
    tokens, order, starts, counts, means, count, groups, channels, blocks, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """One program: some channels of one group."""
    group = (tl.program_id(0) // blocks).to(tl.int64)  # of all frames
    frame = group // groups
    channel = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    inside = channel < channels
    tokens += frame * count * channels
    start = tl.load(starts + group + frame)
    stop = tl.load(starts + group + frame + 1)
    total = tl.zeros((WIDTH,), tl.float32)
    for first in range(start, stop, ROWS):
        place = first + tl.arange(0, ROWS)
        row = tl.load(order + frame * count + place, mask=place < stop, other=0).to(tl.int64)
        wanted = (place < stop)[:, None] & inside[None, :]
        x = tl.load(tokens + row[:, None] * channels + channel[None, :], mask=wanted, other=0.0)
        total += tl.sum(x.to(tl.float32), axis=0)
    size = tl.maximum(tl.load(counts + group), 1).to(tl.float32)
    mean = tl.div_rn(total, tl.zeros((WIDTH,), tl.float32) + size)
    tl.store(means + group * channels + channel, mean.to(means.dtype.element_ty), mask=inside)


@triton.jit
def _share(gradient, labels, counts, shared, count, groups, channels, blocks, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """One program: some channels of some tokens, each of which gets its share of its group's gradient."""
    parts = tl.cdiv(count, ROWS)
    frame = (tl.program_id(0) // (blocks * parts)).to(tl.int64)
    row = (tl.program_id(0) // blocks % parts) * ROWS + tl.arange(0, ROWS)
    channel = (tl.program_id(0) % blocks) * WIDTH + tl.arange(0, WIDTH)
    label = tl.load(labels + frame * count + row, mask=row < count, other=-1)
    group = frame * groups + tl.maximum(label, 0)
    size = tl.maximum(tl.load(counts + group), 1).to(tl.float32)
    inside = (row < count)[:, None] & (channel < channels)[None, :]
    wanted = inside & (label >= 0)[:, None]
    x = tl.load(gradient + group[:, None] * channels + channel[None, :], mask=wanted, other=0.0).to(tl.float32)
    share = tl.div_rn(x, tl.zeros((ROWS, WIDTH), tl.float32) + size[:, None])
    target = shared + (frame * count + row)[:, None] * channels + channel[None, :]
    tl.store(target, share.to(shared.dtype.element_ty), mask=inside)
