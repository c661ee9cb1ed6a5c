"""Products of all pairs of a frame's tokens, from their mean as far as this is exact: the first two passes.

Triton's products are fp32-exact here in two ways. fp32 tokens are centred as the specification does and multiplied
in ordinary fp32 arithmetic. For 16-bit tokens the product of two numbers is exact in fp32, and sums are fp32, so
tensor cores take them as they are; to centre them would round them. But where a channel stands so far from zero that
an offset could eat digits, the subtraction is exact: by Sterbenz's lemma x - c has no rounding for x/2 <= c <= 2x. So
a channel is shifted by its rounded mean if that holds for all tokens of the frame, and else not at all: then some
token is as far from c as half of c, and the offset is no large part of the distances.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Plan, products

CHANNELS = 32  # of one program of `_centre`: 64 bytes of each token


def centred(tokens: Tensor, lengths: Tensor, plan: Plan) -> Tensor:
    """[F, pitch, width]: tokens without a common offset, zero where a frame or its padding has none."""
    frames, _, channels = tokens.shape
    out = torch.empty(frames, plan.pitch, plan.width, dtype=tokens.dtype, device=tokens.device)
    blocks = triton.cdiv(plan.width, CHANNELS)
    arguments = (tokens, lengths, out, channels, *tokens.stride(), plan.pitch, plan.width, blocks)
    _centre[(frames * blocks,)](*arguments, EXACT=tokens.dtype != torch.float32, TOKENS=64, CHANNELS=CHANNELS)
    return out


def gram(tokens: Tensor, lengths: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Products fp32 [F, pitch, pitch] of centred tokens, and their diagonal, the norms, fp32 [F, pitch].

    Half of the tiles are made and stored on both sides. Without `plan.stored` only those on the diagonal are made, and
    the first result is empty. What belongs to no token is not written.
    """
    frames, tiles = len(tokens), plan.pitch // plan.tile
    shape = (frames, plan.pitch, plan.pitch) if plan.stored else (0,)
    out = torch.empty(shape, dtype=torch.float32, device=tokens.device)
    norms = torch.empty(frames, plan.pitch, dtype=torch.float32, device=tokens.device)
    options = {"STORED": plan.stored, "TILE": plan.tile, "STEP": plan.step}
    grid = (frames * (tiles**2 if plan.stored else tiles),)
    launch = {"num_warps": plan.warps, "num_stages": plan.stages}
    _gram[grid](tokens, lengths, out, norms, plan.pitch, plan.width, tiles, **options, **launch)
    return out, norms


@triton.jit
def _centre(
    tokens, lengths, out, channels, stride_frame, stride_token, stride_channel, pitch, width, blocks,
    EXACT: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: some channels of all tokens of a frame."""
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    length = tl.load(lengths + frame)
    token = tl.arange(0, TOKENS)
    tokens += frame * stride_frame + channel[None, :].to(tl.int64) * stride_channel
    out += frame * pitch * width + channel[None, :]
    total = tl.zeros((CHANNELS,), tl.float32)
    low = tl.full((CHANNELS,), float("inf"), tl.float32)
    high = tl.full((CHANNELS,), float("-inf"), tl.float32)
    for start in range(0, length, TOKENS):
        here = (start + token)[:, None].to(tl.int64)
        real = (here < length) & (channel[None, :] < channels)
        x = tl.load(tokens + here * stride_token, mask=real, other=0.0).to(tl.float32)
        total += tl.sum(x, axis=0)
        low = tl.minimum(low, tl.min(tl.where(real, x, float("inf")), axis=0))
        high = tl.maximum(high, tl.max(tl.where(real, x, float("-inf")), axis=0))
    mean = total / length.to(tl.float32)
    if EXACT:
        mean = mean.to(out.dtype.element_ty).to(tl.float32)
        near, far = mean * 0.5, mean * 2.0
        exact = (low >= tl.minimum(near, far)) & (high <= tl.maximum(near, far))
        mean = tl.where(exact, mean, 0.0)
    for start in range(0, pitch, TOKENS):
        here = (start + token)[:, None].to(tl.int64)
        real = (here < length) & (channel[None, :] < channels)
        x = tl.load(tokens + here * stride_token, mask=real, other=0.0).to(tl.float32)
        x = tl.where(real, x - mean[None, :], 0.0).to(out.dtype.element_ty)
        tl.store(out + here * width, x, mask=(here < pitch) & (channel[None, :] < width))


@triton.jit
def _gram(
    tokens, lengths, gram, norms, pitch, width, tiles,
    STORED: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a tile on or above the diagonal, and what mirrors it."""
    if STORED:
        frame = (tl.program_id(0) // (tiles * tiles)).to(tl.int64)
        row_tile = tl.program_id(0) // tiles % tiles
    else:
        frame = (tl.program_id(0) // tiles).to(tl.int64)
        row_tile = tl.program_id(0) % tiles
    column_tile = row_tile
    if STORED:
        column_tile = tl.program_id(0) % tiles
    if (column_tile < row_tile) | (column_tile * TILE >= tl.load(lengths + frame)):
        return
    rows = row_tile * TILE + tl.arange(0, TILE)
    columns = column_tile * TILE + tl.arange(0, TILE)
    values = products(gram, tokens + frame * pitch * width, rows, columns, pitch, width, False, STEP)
    if row_tile == column_tile:
        on_diagonal = rows[:, None] == columns[None, :]
        tl.store(norms + frame * pitch + rows, tl.sum(tl.where(on_diagonal, values, 0.0), axis=1))
        values = tl.where(rows[:, None] <= columns[None, :], values, tl.trans(values))
    if STORED:
        gram += frame * pitch * pitch
        tl.store(gram + rows[:, None] * pitch + columns[None, :], values)
        if row_tile != column_tile:
            tl.store(gram + columns[:, None] * pitch + rows[None, :], tl.trans(values))
