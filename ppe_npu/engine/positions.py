"""Positions of a prompt's tokens, and the axes to which a rotary embedding's channels belong.

In a rotary embedding with sections (M-RoPE) every channel of half a head belongs to one of the axes t, h, w; a plain
one has a single axis.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ppe_npu.engine.spans import VIDEO, PromptLayout, Span, VisionTokens
from ppe_npu.errors import InputError

HALVES, NEIGHBOURS = "halves", "neighbours"


def prompt_positions(
    layout: PromptLayout,
    vision: VisionTokens,
    start: Sequence[int] | None = None,
    axes: int = 3,
    kept: np.ndarray | None = None,
    behind_time: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """(t, h, w) of every token, numbered as Qwen2.5-VL was trained; with one axis, the token's index in its sample.

    Text counts up by one on all three axes; a visual token has its frame, row and column, counted from the position
    after the text before it; text after a span continues at the span's max(t, h, w) + 1.

    Args:
        start: [B] first position of each sample (of a prompt that continues a cache); 0 if None.
        axes: 3, or 1 for a plain rotary embedding.
        kept: [V] bool, the visual tokens (in the order of the features) that max(t, h, w) is taken over; None: all.
            After a span that has none of them, text continues where the span began.
        behind_time: if False, text continues at max(h, w) + 1, whatever t is, see VisionTokens.text_behind_time.

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
        spans, first = [span for span in layout.spans if span.sample == sample], int(following[sample])
        following[sample] = _number(positions[:, sample], layout.real[sample], spans, vision, first, kept, behind_time)
    return np.where(layout.real, positions, 0), following


def _number(
    positions: np.ndarray,
    real: np.ndarray,
    spans: Sequence[Span],
    vision: VisionTokens,
    following: int,
    kept: np.ndarray | None,
    behind_time: bool,
) -> int:
    """Write one sample's positions [3, S], which start at `following`; return the position after the largest."""
    at, largest = 0, following
    for visual in [*spans, None]:
        end = len(real) if visual is None else visual.start
        text = at + np.flatnonzero(real[at:end])
        positions[:, text] = following + np.arange(len(text))
        following += len(text)
        if visual is None:
            continue
        at = visual.start + visual.tokens
        if real[visual.start : at].any():  # else the mask hides it
            grid = following + grid_positions(visual, vision)
            positions[:, visual.start : at] = grid
            own = grid if kept is None else grid[:, kept[visual.feature :][: visual.tokens]]
            if own.size:
                largest = max(largest, int(own.max()) + 1)
                following = int((own if behind_time else own[1:]).max()) + 1
    return max(largest, following)


def position_rows(given: torch.Tensor, axes: int, shape: tuple[int, ...]) -> torch.Tensor:
    """[axes, B, S] from positions as transformers takes them: [B, S] or [1, B, S] for all axes alike, [axes, B, S], or
    [1 + axes, B, S], whose first row has the positions of text. A B of 1 is expanded to the batch.

    Args:
        shape: (B, S).

    Raises:
        InputError: the positions have another shape.
    """
    rows = given[None] if given.ndim == 2 else given
    rows = rows.expand(axes, -1, -1) if rows.ndim == 3 and len(rows) == 1 else rows
    rows = rows[1:] if rows.ndim == 3 and len(rows) == axes + 1 else rows
    if rows.ndim != 3 or len(rows) != axes or rows.shape[2] != shape[1] or rows.shape[1] not in (1, shape[0]):
        wanted = [axes, *shape]
        raise InputError(
            f"position_ids have shape {list(given.shape)}: give {wanted}, {wanted[1:]} or {[axes + 1, *shape]}"
        )
    return rows.expand(axes, *shape)


def grid_positions(span: Span, vision: VisionTokens) -> np.ndarray:
    """[3, tokens] positions of a span, counted from 0. A frame's t is its second times tokens_per_second, truncated."""
    frames, height, width = span.grid
    time = np.arange(frames)
    if vision.tokens_per_second is not None:
        seconds = np.float32(span.seconds_per_frame if span.modality == VIDEO else 0)
        time = (time.astype(np.float32) * seconds * np.float32(vision.tokens_per_second)).astype(np.int64)
    grid = np.empty((3, frames, height, width), dtype=np.int64)
    grid[0], grid[1], grid[2] = time[:, None, None], np.arange(height)[:, None], np.arange(width)
    return grid.reshape(3, -1)


def axes_of(channels: Sequence[int]) -> int:
    """The number of axes to which the channels belong: 3 (t, h, w), or 1."""
    return max(channels) + 1


def most_positions(channels: Sequence[int]) -> int:
    """The largest possible K: the number of channels of the axis that has the fewest."""
    return min(list(channels).count(axis) for axis in range(axes_of(channels)))


def check_channels(k: int, channels: Sequence[int]) -> None:
    """Raise InputError if K is more than an axis has channels, because some kept position would then rotate nothing.

    Args:
        channels: the axis of each channel of half a head.
    """
    sections = [list(channels).count(axis) for axis in range(axes_of(channels))]
    if k > min(sections):
        even = [n for n in range(1, min(sections) + 1) if not any(section % n for section in sections)]
        raise InputError(
            f"k={k} exceeds the smallest of this model's rotary sections (channels: {sections}): choose k from 1 to "
            f"{min(sections)}; with {', '.join(map(str, even))} every section is cut evenly"
        )


def contiguous_channels(sections: Sequence[int]) -> tuple[int, ...]:
    """The axis of each channel if the sections of t, h and w are contiguous (Qwen2-VL, section 2.1)."""
    return tuple(axis for axis, section in enumerate(sections) for _ in range(section))


def interleaved_channels(sections: Sequence[int], half: int | None = None) -> tuple[int, ...]:
    """The axis of each channel if t, h, w alternate until h and w have all of theirs (Qwen3-VL, section 2.1).

    Args:
        half: the number of channels, of which t has all that h and w do not take; None: the sum of the sections.
    """
    turns = range(sum(sections) if half is None else half)
    return tuple(c % 3 if c % 3 and c < 3 * sections[c % 3] else 0 for c in turns)
