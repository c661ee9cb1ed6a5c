"""Tokens centred on the mean of their frame: the first pass of the clustering."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Tiling


def centred(tokens: Tensor, lengths: Tensor, tiling: Tiling) -> Tensor:
    """fp32 [F, pitch, width]: tokens [F, N, C] minus the mean of their frame, zero in padding. lengths: int32 [F]."""
    frames, count, channels = tokens.shape
    out = torch.empty(frames, tiling.pitch, tiling.width, dtype=torch.float32, device=tokens.device)
    steps = tiling.width // tiling.channels
    _centre[(tiling.vectors,)](
        tokens.contiguous(), lengths, out, frames * steps, count, channels, tiling.pitch, tiling.width, steps,
        TOKENS=tiling.tokens, CHANNELS=tiling.channels,
    )  # fmt: skip
    return out


@triton.jit
def _centre(
    x_ptr, lengths_ptr, out_ptr, tasks, num_tokens, num_channels, pitch, width, steps,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A task centres CHANNELS channels of all tokens of a frame."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        frame = task // steps
        channel = (task % steps) * CHANNELS + tl.arange(0, CHANNELS)
        length = tl.load(lengths_ptr + frame)
        source = x_ptr + frame * num_tokens * num_channels
        target = out_ptr + frame * pitch * width
        total = tl.zeros((CHANNELS,), tl.float32)
        for start in range(0, length, TOKENS):
            token = start + tl.arange(0, TOKENS)
            mask = (token < length)[:, None] & (channel < num_channels)[None, :]
            x = tl.load(source + token[:, None] * num_channels + channel[None, :], mask=mask, other=0.0)
            total += tl.sum(x.to(tl.float32), axis=0)
        mean = total / length.to(tl.float32)
        for start in range(0, pitch, TOKENS):
            token = start + tl.arange(0, TOKENS)
            mask = (token < length)[:, None] & (channel < num_channels)[None, :]
            x = tl.load(source + token[:, None] * num_channels + channel[None, :], mask=mask, other=0.0)
            x = tl.where(token[:, None] < length, x.to(tl.float32) - mean[None, :], 0.0)
            tl.store(target + token[:, None] * width + channel[None, :], x)
