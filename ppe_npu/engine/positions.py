"""Positions: of a prompt's tokens, of merged tokens, and the rotary table that they make.

A rotary embedding with sections (M-RoPE) gives every channel of the half head dim to one of the axes t, h, w; a plain
one has one axis. A merged token that keeps K positions splits the channels of each axis into K runs, as even as they
go: run j is rotated by the j-th kept position (PPE, arXiv 2510.22936, section 3). So positions are [R, B, S] rows,
R = axes or axes * K, row = axis * K + j, and channel c of the half head dim reads one row r(c), as does its partner in
the other half: the table cos/sin is [B, S, D] whatever K is, and all layers share it.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch

from ppe_npu.backends.compiling import traced_once
from ppe_npu.engine.spans import VIDEO, PromptLayout, Span, VisionTokens
from ppe_npu.errors import InputError
from ppe_npu.methods.positions.base import MEAN_ANGLE, RUNS

HALVES, NEIGHBOURS = "halves", "neighbours"


def prompt_positions(
    layout: PromptLayout,
    vision: VisionTokens,
    start: Sequence[int] | None = None,
    axes: int = 3,
    kept: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(t, h, w) of every token, numbered as Qwen2.5-VL was trained; of a decoder with one axis, its place in the text.

    Text counts up by one on all three axes; a visual token stands at its frame, row and column, counted from the
    position after the text before it; text after a span goes on at the span's max(t, h, w) + 1.

    Args:
        start: [B] first position of each sample (of a prompt that continues a cache); 0 if None.
        axes: 3, or 1 for a plain rotary embedding.
        kept: [V] bool, of which visual tokens (in the order of the features) the max(t, h, w) counts; None: of all. A
            span of which none counts takes no place: text goes on where it began.

    Returns:
        positions: [axes, B, S] int64, 0 at padding.
        following: [B] int64, the position after each sample's largest.
    """
    samples, length = layout.real.shape
    following = np.zeros(samples, dtype=np.int64) if start is None else np.array(start, dtype=np.int64)
    if axes == 1:
        place = following[:, None] + layout.real.cumsum(axis=1) - 1
        return np.where(layout.real, place, 0)[None], following + layout.real.sum(axis=1)
    positions = np.zeros((3, samples, length), dtype=np.int64)
    for sample in range(samples):
        at, following_position = 0, int(following[sample])
        for visual in [*(span for span in layout.spans if span.sample == sample), None]:
            end = length if visual is None else visual.start
            text = at + np.flatnonzero(layout.real[sample, at:end])
            positions[:, sample, text] = following_position + np.arange(len(text))
            following_position += len(text)
            if visual is None:
                continue
            at = visual.start + visual.tokens
            if layout.real[sample, visual.start : at].any():  # else the mask hides it
                grid = following_position + grid_positions(visual, vision)
                positions[:, sample, visual.start : at] = grid
                own = grid if kept is None else grid[:, kept[visual.feature :][: visual.tokens]]
                following_position = int(own.max()) + 1 if own.size else following_position
        following[sample] = following_position
    return np.where(layout.real, positions, 0), following


def position_rows(given: torch.Tensor, axes: int, shape: tuple[int, ...]) -> torch.Tensor:
    """[axes, B, S] of positions as transformers takes them: [B, S] for all axes alike, [axes, B, S], or [1 + axes, B,
    S], whose first row are places in the text. B may be 1 for a batch of more.

    Args:
        shape: (B, S).

    Raises:
        InputError: another shape.
    """
    rows = given[None].expand(axes, *given.shape) if given.ndim == 2 else given
    rows = rows[1:] if rows.ndim == 3 and len(rows) == axes + 1 else rows
    if rows.ndim != 3 or len(rows) != axes or rows.shape[2] != shape[1] or rows.shape[1] not in (1, shape[0]):
        wanted = [axes, *shape]
        raise InputError(
            f"position_ids have shape {list(given.shape)}, not {wanted}, {wanted[1:]} or {[axes + 1, *shape]}"
        )
    return rows.expand(axes, *shape)


def grid_positions(span: Span, vision: VisionTokens) -> np.ndarray:
    """[3, tokens] positions of a span counted from 0. A frame's time is its second times tokens_per_second, cut."""
    frames, height, width = span.grid
    time = np.arange(frames)
    if vision.tokens_per_second is not None:
        seconds = np.float32(span.seconds_per_frame if span.modality == VIDEO else 0)
        time = (time.astype(np.float32) * seconds * np.float32(vision.tokens_per_second)).astype(np.int64)
    t, h, w = np.meshgrid(time, np.arange(height), np.arange(width), indexing="ij")
    return np.stack([t, h, w]).reshape(3, -1)


def held_rows(positions: torch.Tensor, held: torch.Tensor, by_axis: bool) -> torch.Tensor:
    """The rows [R, B, L] of tokens by the original ones that they hold: R = axes * K.

    Args:
        positions: [axes, originals].
        held: [B, L, K] int64; `by_axis`: [B, L, axes * K], where it is not of width 1.
    """
    if by_axis and held.shape[-1] > 1:
        own = held.chunk(len(positions), dim=-1)
        return torch.cat([at[of_axis].permute(2, 0, 1) for at, of_axis in zip(positions, own)])
    return positions[:, held].permute(0, 3, 1, 2).flatten(0, 1)  # [axes, B, L, K] -> rows axis * K + j


def axes_of(channels: Sequence[int]) -> int:
    """How many axes the channels are given to: 3 (t, h, w), or 1."""
    return max(channels) + 1


def most_positions(channels: Sequence[int]) -> int:
    """The largest K: as many kept positions as the axis with the fewest channels can rotate by."""
    return min(list(channels).count(axis) for axis in range(axes_of(channels)))


def check_channels(k: int, channels: Sequence[int]) -> None:
    """Raise InputError where K is more than an axis has channels: then some kept position would rotate nothing.

    Args:
        channels: the axis of each channel of the half head dim.
    """
    sections = [list(channels).count(axis) for axis in range(axes_of(channels))]
    if k > min(sections):
        even = [n for n in range(1, min(sections) + 1) if not any(section % n for section in sections)]
        raise InputError(
            f"k={k} is more than the smallest of this model's rotary sections {sections} has channels: choose a k from "
            f"1 to {min(sections)}; with {', '.join(map(str, even))} every section is cut evenly"
        )


def contiguous_channels(sections: Sequence[int]) -> tuple[int, ...]:
    """The axis of each channel where the sections of t, h and w follow each other (Qwen2-VL, section 2.1)."""
    return tuple(axis for axis, section in enumerate(sections) for _ in range(section))


def interleaved_channels(sections: Sequence[int], half: int | None = None) -> tuple[int, ...]:
    """The axis of each channel where t, h, w take turns until h and w have their sections (Qwen3-VL, section 2.1).

    Args:
        half: how many channels there are, whatever the sections' sum: t has what is left. None: that sum.
    """
    turns = range(sum(sections) if half is None else half)
    return tuple(c % 3 if c % 3 and c < 3 * sections[c % 3] else 0 for c in turns)


def channel_rows(rows: int, channels: Sequence[int]) -> list[int]:
    """The row that each channel of the half head dim reads: an axis' channels, in their order, are split in K runs.

    Runs are as even as they go (as np.array_split cuts): of n channels the first n % K runs have one more.

    Args:
        rows: R = axes * K.
        channels: the axis of each channel.
    """
    axes = axes_of(channels)
    k = rows // axes
    if rows != axes * k or k < 1:
        raise ValueError(f"positions have {rows} rows: {axes} axes need a multiple of {axes}")
    check_channels(k, channels)
    out = np.zeros(len(channels), np.int64)
    for axis in range(axes):
        for run, own in enumerate(np.array_split(np.flatnonzero(np.array(channels) == axis), k)):
            out[own] = axis * k + run
    return out.tolist()


def rotary_table(
    rows: torch.Tensor,
    inv_freq: torch.Tensor,
    channels: Sequence[int],
    scaling: float = 1.0,
    pairs: str = HALVES,
    table: str = RUNS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every token and channel.

    Args:
        rows: [R, B, S] positions.
        inv_freq: [D / 2] fp32, radians per position.
        channels: the axis of each of the D / 2 channels.
        pairs: which two of D each of them turns: "halves", c and c + D / 2; "neighbours", 2 c and 2 c + 1.
        table: what it makes of several positions on an axis, see methods.positions.base.Rule.

    Returns:
        cos, sin: [B, S, D] fp32, the two of each pair alike.
    """
    inv_freq = inv_freq.float()
    if table == RUNS:
        angles = _angles(rows, channels, inv_freq)
        cos, sin = angles.cos(), angles.sin()
    else:
        cos, sin = _mean_rotation(rows, channels, inv_freq, unit=table == MEAN_ANGLE)
    if pairs == NEIGHBOURS:
        cos, sin = (part.repeat_interleave(2, dim=-1) for part in (cos, sin))
    else:
        cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)
    return cos * scaling, sin * scaling


def _angles(rows: torch.Tensor, channels: Sequence[int], inv_freq: torch.Tensor) -> torch.Tensor:
    """[B, S, D / 2] fp32 radians."""
    lookup = _channel_lookup(rows.shape[0], tuple(channels), rows.device)
    return rows.permute(1, 2, 0).to(inv_freq.dtype).index_select(-1, lookup) * inv_freq


def _mean_rotation(
    rows: torch.Tensor, channels: Sequence[int], inv_freq: torch.Tensor, unit: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin [B, S, D / 2] of the mean of the rotations by K positions, each position that repeats another counted
    once. `unit`: at length 1; where they cancel each other, of the first one."""
    own = rows.unflatten(0, (axes_of(channels), -1)).transpose(0, 1)  # [K, axes, B, S]
    earlier = torch.ones(len(own), len(own), dtype=torch.bool, device=rows.device).tril(-1)
    repeated = ((own[:, None] == own[None]).all(2) & earlier[:, :, None, None]).any(1)
    weights = (~repeated).float()[..., None]
    angles = torch.stack([_angles(part, channels, inv_freq) for part in own])
    first, count = angles[0], weights.sum(0)
    cos, sin = ((weights * part).sum(0) / count for part in (angles.cos(), angles.sin()))
    if not unit:
        return cos, sin
    length = torch.hypot(cos, sin)
    told = length > len(own) * torch.finfo(torch.float32).eps  # what K terms of size 1 round to
    length = torch.where(told, length, 1)
    return torch.where(told, cos / length, first.cos()), torch.where(told, sin / length, first.sin())


@traced_once  # else an upload would be part of the graph
def _channel_lookup(rows: int, channels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """channel_rows on the device; made once, because every upload of a list makes the host wait."""
    return _uploaded_channel_rows(rows, channels, device)


@functools.lru_cache(maxsize=32)
def _uploaded_channel_rows(rows: int, channels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # else the first caller's mode would stick to it
        return torch.tensor(channel_rows(rows, channels), device=device)
