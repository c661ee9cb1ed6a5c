"""Positions: of a prompt's tokens, of merged tokens, and the rotary table that they make.

A rotary embedding with sections (M-RoPE) gives every channel of the half head dim to one of the axes t, h, w. A merged
token that keeps K positions splits each axis' section into K equal runs of channels: run j turns by the j-th kept
position (PPE, arXiv 2510.22936, section 3). So positions are [R, B, S] rows, R = 3 or 3K, row = axis * K + j, and
channel c reads one row r(c): the table cos/sin is [B, S, D] whatever K is, and all layers share it.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch

from ppe_npu.backends.compiling import traced_once
from ppe_npu.backends.reference.rotary_rows import table
from ppe_npu.errors import InputError
from ppe_npu.spans import VIDEO, PromptLayout, Span, VisionTokens


def prompt_positions(
    layout: PromptLayout, vision: VisionTokens, start: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(t, h, w) of every token, numbered as Qwen2.5-VL was trained.

    Text counts up by one on all three axes; a visual token stands at its frame, row and column, counted from the
    position after the text before it; text after a span goes on at the span's max(t, h, w) + 1.

    Args:
        start: [B] first position of each sample (of a prompt that continues a cache); 0 if None.

    Returns:
        positions: [3, B, S] int64, 0 at padding.
        following: [B] int64, the position after each sample's largest.
    """
    samples, length = layout.real.shape
    positions = np.zeros((3, samples, length), dtype=np.int64)
    following = np.zeros(samples, dtype=np.int64) if start is None else np.array(start, dtype=np.int64)
    spans: list[list[Span]] = [[] for _ in range(samples)]
    for span in layout.spans:
        spans[span.sample].append(span)
    for sample in range(samples):
        at, following_position = 0, int(following[sample])
        for span in [*spans[sample], None]:
            end = length if span is None else span.start
            text = at + np.flatnonzero(layout.real[sample, at:end])
            positions[:, sample, text] = following_position + np.arange(len(text))
            following_position += len(text)
            if span is not None:
                grid = following_position + _grid_positions(span, vision)
                at = span.start + span.tokens
                positions[:, sample, span.start : at] = grid
                following_position = int(grid.max()) + 1
        following[sample] = following_position
    return positions, following


def _grid_positions(span: Span, vision: VisionTokens) -> np.ndarray:
    """[3, tokens] positions of a span counted from 0. A frame's time is its second times tokens_per_second, cut."""
    frames, height, width = span.grid
    time = np.arange(frames)
    if vision.tokens_per_second is not None:
        seconds = np.float32(span.seconds_per_frame if span.modality == VIDEO else 0)
        time = (time.astype(np.float32) * seconds * np.float32(vision.tokens_per_second)).astype(np.int64)
    t, h, w = np.meshgrid(time, np.arange(height), np.arange(width), indexing="ij")
    return np.stack([t, h, w]).reshape(3, -1)


def check_channels(k: int, channels: Sequence[int]) -> None:
    """Raise InputError unless K divides the channels of every axis (otherwise the two halves of a channel pair would
    turn by different positions, and the embedding would be no rotation).

    Args:
        channels: the axis of each channel of the half head dim, 0, 1 or 2.
    """
    sections = [list(channels).count(axis) for axis in range(3)]
    if any(section % k for section in sections):
        fitting = [n for n in range(1, min(sections) + 1) if not any(section % n for section in sections)]
        raise InputError(
            f"k={k} does not divide every M-RoPE section of this model {sections}: "
            f"choose one of {', '.join(map(str, fitting))}"
        )


def contiguous_channels(sections: Sequence[int]) -> tuple[int, ...]:
    """The axis of each channel where the sections of t, h and w follow each other (Qwen2-VL, section 2.1)."""
    return tuple(axis for axis, section in enumerate(sections) for _ in range(section))


def interleaved_channels(sections: Sequence[int]) -> tuple[int, ...]:
    """The axis of each channel where t, h, w take turns until h and w have their sections (Qwen3-VL, section 2.1)."""
    turns = range(sum(sections))
    return tuple(c % 3 if c % 3 and c < 3 * sections[c % 3] else 0 for c in turns)


def channel_rows(rows: int, channels: Sequence[int]) -> list[int]:
    """The row that each channel of the half head dim reads: an axis' channels, in their order, are split in K runs.

    Args:
        rows: R = 3K.
        channels: the axis of each channel; K divides the channels of each axis.
    """
    k = rows // 3
    if rows != 3 * k or k < 1:
        raise ValueError(f"positions have {rows} rows: three axes need a multiple of 3")
    check_channels(k, channels)
    length = [list(channels).count(axis) // k for axis in range(3)]
    seen, out = [0, 0, 0], []
    for axis in channels:
        out.append(axis * k + seen[axis] // length[axis])
        seen[axis] += 1
    return out


def rotary_table(
    rows: torch.Tensor, inv_freq: torch.Tensor, channels: Sequence[int], scaling: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every token and channel.

    Args:
        rows: [R, B, S] positions.
        inv_freq: [D / 2] fp32, radians per position.
        channels: the axis of each of the D / 2 channels.

    Returns:
        cos, sin: [B, S, D] fp32, the two halves of D alike.
    """
    lookup = _channel_lookup(rows.shape[0], tuple(channels), rows.device)
    return table(rows, inv_freq.float(), lookup, scaling)


@traced_once  # else an upload would be part of the graph
def _channel_lookup(rows: int, channels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """channel_rows on the device; made once, because every upload of a list makes the host wait."""
    return _uploaded_channel_rows(rows, channels, device)


@functools.lru_cache(maxsize=32)
def _uploaded_channel_rows(rows: int, channels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # else the first caller's mode would stick to it
        return torch.tensor(channel_rows(rows, channels), device=device)
