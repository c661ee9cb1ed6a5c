"""Products of all pairs of a frame's tokens, from their mean as far as this matters: the first two passes.

Triton's products are fp32-exact here in two ways. fp32 tokens are centred as the specification does and multiplied
in ordinary fp32 arithmetic. For 16-bit tokens the product of two numbers is exact in fp32, and sums are fp32, so
tensor cores take them. What is left is the offset c of a channel, its mean rounded to 16 bits, which eats digits:

* If x - c is a 16-bit number for all tokens of the frame, the channel is shifted, and nothing is lost. So it is where
  tokens are near c, by Sterbenz's lemma for x/2 <= c <= 2x.
* If |c| is at most FAR mean deviations (each counted up to |c|, so that a few outliers make no channel seem wide), the
  channel stays. The mean square of x is then at most 1 + FAR^2 = 17 times that of x - c, so sums round by 17 * 2^-24 =
  1e-6 of the spread, less than the next rule's bf16 does.
* Else, a massive channel with outliers, x - c is split in two 16-bit parts, high + low. They miss at most 2^-17 of it
  in bf16, and in fp16, whose numbers are multiples of 2^-24, 2^-23. The step of channels it stands in is flagged, and
  has four products instead of one. Without low x low, |low_i - low_j|^2 would be missing in d^2: all of the distance
  between two outliers that are alike.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import SPLIT_TILE, Centred, Plan, any_flag, products, with_low

FAR = tl.constexpr(4.0)  # mean deviations


def centred(tokens: Tensor, lengths: Tensor, plan: Plan) -> Centred:
    """Tokens without a common offset, as far as it matters (see above)."""
    frames, _, channels = tokens.shape
    high = torch.empty(frames, plan.pitch, plan.width, dtype=tokens.dtype, device=tokens.device)
    steps, low, flags = plan.width // plan.step, high, lengths
    split = tokens.dtype != torch.float32
    if split:
        low, flags = torch.empty_like(high), torch.empty(frames, steps, dtype=torch.int32, device=tokens.device)
    arguments = (tokens, lengths, high, low, flags, channels, *tokens.stride(), plan.pitch, plan.width, steps)
    _centre[(frames * steps,)](*arguments, SPLIT=split, TOKENS=64, CHANNELS=plan.step)
    return Centred(high, low, flags)


def gram(tokens: Centred, lengths: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Products fp32 [F, pitch, pitch] of centred tokens, and their diagonal, the norms, fp32 [F, pitch].

    Half of the tiles are made and stored on both sides. Without `plan.stored` only those on the diagonal are made, and
    the first result is empty. What belongs to no token is not written.
    """
    frames, tiles, device = len(lengths), plan.pitch // plan.tile, lengths.device
    shape = (frames, plan.pitch, plan.pitch) if plan.stored else (0,)
    out = torch.empty(shape, dtype=torch.float32, device=device)
    norms = torch.empty(frames, plan.pitch, dtype=torch.float32, device=device)
    options = {"STORED": plan.stored, "TILE": plan.tile, "STEP": plan.step}
    grid = (frames * (tiles**2 if plan.stored else tiles),)
    arguments = (*tokens, lengths, out, norms, plan.pitch, plan.width, tiles)
    later = tokens.split and plan.stored
    split = tokens.split and not later
    _gram[grid](*arguments, SPLIT=split, LATER=False, **options, num_warps=plan.warps, num_stages=plan.stages)
    if later:
        # In a launch of its own, in smaller tiles: these are three tiles of sums at a time, and registers hold them.
        options["TILE"] = min(SPLIT_TILE, plan.tile)
        tiles = plan.pitch // options["TILE"]
        arguments = (*arguments[:-1], tiles)
        _gram[(frames * tiles**2,)](*arguments, SPLIT=True, LATER=True, **options, num_warps=4, num_stages=plan.stages)
    return out, norms


@triton.jit
def _centre(
    tokens, lengths, high, low, flags, channels, stride_frame, stride_token, stride_channel, pitch, width, steps,
    SPLIT: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: the channels of one step, of all tokens of a frame."""
    frame = (tl.program_id(0) // steps).to(tl.int64)
    channel = (tl.program_id(0) % steps) * CHANNELS + tl.arange(0, CHANNELS)
    length = tl.load(lengths + frame)
    token = tl.arange(0, TOKENS)
    inside = channel[None, :] < channels
    tokens += frame * stride_frame + channel[None, :].to(tl.int64) * stride_channel
    total = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, length, TOKENS):
        here = (start + token)[:, None].to(tl.int64)
        real = (here < length) & inside
        total += tl.sum(tl.load(tokens + here * stride_token, mask=real, other=0.0).to(tl.float32), axis=0)
    offset = total / length.to(tl.float32)
    flag = 0
    if SPLIT:
        offset, flag = _shift(tokens, offset, length, inside, stride_token, high.dtype.element_ty, TOKENS, CHANNELS)
        tl.store(flags + tl.program_id(0), flag)
    place = frame * pitch * width + channel[None, :]
    for start in range(0, pitch, TOKENS):
        here = (start + token)[:, None].to(tl.int64)
        real = (here < length) & inside
        x = tl.load(tokens + here * stride_token, mask=real, other=0.0).to(tl.float32)
        x = tl.where(real, x - offset[None, :], 0.0)
        rounded = x.to(high.dtype.element_ty)
        tl.store(high + place + here * width, rounded, mask=here < pitch)
        if flag != 0:
            x -= rounded.to(tl.float32)
            tl.store(low + place + here * width, x.to(high.dtype.element_ty), mask=here < pitch)


@triton.jit
def _shift(
    tokens, mean, length, inside, stride_token,
    DTYPE: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """(c [CHANNELS], or 0 where a channel stays; 1 if one of them needs low parts): the rule at the top of the file."""
    offset = mean.to(DTYPE).to(tl.float32)
    token = tl.arange(0, TOKENS)
    lost = tl.zeros((CHANNELS,), tl.float32)
    spread = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, length, TOKENS):
        here = (start + token)[:, None].to(tl.int64)
        real = (here < length) & inside
        x = tl.load(tokens + here * stride_token, mask=real, other=0.0).to(tl.float32)
        x = tl.where(real, x - offset[None, :], 0.0)
        lost = tl.maximum(lost, tl.max(tl.abs(x - x.to(DTYPE).to(tl.float32)), axis=0))
        spread += tl.sum(tl.minimum(tl.abs(x), tl.abs(offset)[None, :]), axis=0)
    far = tl.abs(offset) * length.to(tl.float32) > spread * FAR
    split = far & (lost > 0) & (lost < float("inf"))  # fp16 has no number for twice its largest one
    return tl.where(split | (lost == 0), offset, 0.0), tl.max(split.to(tl.int32), axis=0)


@triton.jit
def _gram(
    tokens, low, flags, lengths, gram, norms, pitch, width, tiles,
    STORED: tl.constexpr, SPLIT: tl.constexpr, LATER: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a tile on or above the diagonal, and what mirrors it; if LATER, what low parts add to it."""
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
    tokens += frame * pitch * width
    low += frame * pitch * width
    flags += frame * (width // STEP)
    if LATER:
        if not any_flag(flags, width // STEP):
            return
        there = gram + frame * pitch * pitch + rows[:, None] * pitch + columns[None, :]
        values = with_low(tl.load(there), tokens, low, flags, rows, columns, width, STEP)
    else:
        values = products(tokens, low, flags, rows, columns, width, SPLIT, STEP)
    if row_tile == column_tile:
        on_diagonal = rows[:, None] == columns[None, :]
        tl.store(norms + frame * pitch + rows, tl.sum(tl.where(on_diagonal, values, 0.0), axis=1))
        values = tl.where(rows[:, None] <= columns[None, :], values, tl.trans(values))
    if STORED:
        gram += frame * pitch * pitch
        tl.store(gram + rows[:, None] * pitch + columns[None, :], values)
        if row_tile != column_tile:
            tl.store(gram + columns[:, None] * pitch + rows[None, :], tl.trans(values))
