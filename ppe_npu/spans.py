"""Where the visual tokens stand in a batch, and where what is kept of them will stand.

Everything here is worked out on the host from token ids, the attention mask and the grids, before any feature exists:
how many tokens each frame keeps, and so every shape and every index of the compressed prompt, is known in advance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

IMAGE, VIDEO = "image", "video"


@dataclass(frozen=True)
class VisionTokens:
    """What a model family says about its visual tokens.

    Args:
        image_token_id, video_token_id: the placeholder ids that stand for one visual token each.
        merge_size: patches per token along height and along width.
        tokens_per_second: temporal positions per second of video.
    """

    image_token_id: int
    video_token_id: int
    merge_size: int
    tokens_per_second: float


@dataclass(frozen=True)
class Span:
    """A run of visual tokens of one image or video.

    Args:
        sample: row of the batch.
        start: index of its first token in that row.
        modality: "image" or "video".
        grid: (frames, height, width) in tokens, not in patches.
        seconds_per_frame: of a video; 0 for an image.
        feature: index of its first token among the features of all images, then all videos.
    """

    sample: int
    start: int
    modality: str
    grid: tuple[int, int, int]
    seconds_per_frame: float
    feature: int

    @property
    def frame_tokens(self) -> int:
        return self.grid[1] * self.grid[2]

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.frame_tokens


@dataclass(frozen=True)
class PromptLayout:
    """A batch of prompts before compression.

    Args:
        real: [B, S] bool, False at padding.
        visual: [B, S] bool, True at visual tokens.
        spans: every span, by sample and then by place.
    """

    real: np.ndarray
    visual: np.ndarray
    spans: tuple[Span, ...]


def find_spans(
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None,
    image_grid_thw: Sequence[Sequence[int]],
    video_grid_thw: Sequence[Sequence[int]],
    seconds_per_frame: Sequence[float] | None,
    vision: VisionTokens,
) -> PromptLayout:
    """Locate the spans of a batch.

    Args:
        input_ids: [B, S] integers.
        attention_mask: [B, S], nonzero at real tokens, or None.
        image_grid_thw, video_grid_thw: (frames, height, width) in patches, in the batch's order.
        seconds_per_frame: of each video (transformers' second_per_grid_ts); None means 1 each.

    Raises:
        ValueError: placeholder tokens and grids that disagree; says which sample, how many there are and how many
            there should be.
    """
    real = np.ones(input_ids.shape, dtype=bool) if attention_mask is None else attention_mask != 0
    kinds = {IMAGE: input_ids == vision.image_token_id, VIDEO: input_ids == vision.video_token_id}
    visual = (kinds[IMAGE] | kinds[VIDEO]) & real
    grids = {IMAGE: _token_grids(image_grid_thw, IMAGE, vision), VIDEO: _token_grids(video_grid_thw, VIDEO, vision)}
    seconds = {IMAGE: [0.0] * len(grids[IMAGE]), VIDEO: list(seconds_per_frame or [1.0] * len(grids[VIDEO]))}
    if len(seconds[VIDEO]) != len(grids[VIDEO]):
        raise ValueError(f"second_per_grid_ts has {len(seconds[VIDEO])} entries for {len(grids[VIDEO])} video(s)")
    used, feature = {IMAGE: 0, VIDEO: 0}, {IMAGE: 0, VIDEO: sum(int(np.prod(grid)) for grid in grids[IMAGE])}
    spans: list[Span] = []
    for sample in range(input_ids.shape[0]):
        places, at = np.flatnonzero(visual[sample]), 0
        while at < len(places):
            start = int(places[at])
            kind = IMAGE if kinds[IMAGE][sample, start] else VIDEO
            if used[kind] == len(grids[kind]):
                raise ValueError(
                    f"sample {sample} has more {kind} tokens than {kind}_grid_thw describes ({len(grids[kind])} "
                    "grids): give the pixels and grids of all of them, and the whole prompt at once"
                )
            span = Span(sample, start, kind, grids[kind][used[kind]], seconds[kind][used[kind]], feature[kind])
            run = kinds[kind][sample, start : start + span.tokens]
            if len(run) != span.tokens or not run.all():
                raise ValueError(
                    f"sample {sample}: {kind} {used[kind]} has a grid of {span.tokens} tokens "
                    f"but its run of {kind} tokens at index {start} is {int(np.cumprod(run).sum())} long"
                )
            spans.append(span)
            used[kind] += 1
            feature[kind] += span.tokens
            at += span.tokens
    for kind in (IMAGE, VIDEO):
        if used[kind] != len(grids[kind]):
            raise ValueError(
                f"{kind}_grid_thw describes {len(grids[kind])} {kind}(s) but the prompts hold tokens of {used[kind]}"
            )
    return PromptLayout(real, visual, tuple(spans))


def _token_grids(grids: Sequence[Sequence[int]], kind: str, vision: VisionTokens) -> list[tuple[int, int, int]]:
    size = vision.merge_size
    out = []
    for t, h, w in grids:
        if t < 1 or h < size or w < size or h % size or w % size:
            raise ValueError(
                f"{kind}_grid_thw {(t, h, w)}: height and width must be positive multiples of {size} patches"
            )
        out.append((int(t), int(h) // size, int(w) // size))
    return out


@dataclass(frozen=True)
class Bucket:
    """Frames of like size, clustered together.

    Args:
        features: [F, N] index of each token among the features, 0 where a frame has no such token.
        valid: [F, N] bool, or None if every frame has N tokens.
        budgets: [F] tokens kept of each frame.
    """

    features: np.ndarray
    valid: np.ndarray | None
    budgets: np.ndarray

    @cached_property
    def kept(self) -> np.ndarray:
        """[G] index of each kept token in the flattened [F, max budget] of this bucket."""
        slots = np.arange(self.budgets.max())
        return np.flatnonzero((slots < self.budgets[:, None]).reshape(-1))


@dataclass(frozen=True)
class CompressedLayout:
    """Where everything stands after compression. Rows: the text tokens of the batch, then the kept visual tokens.

    Args:
        text: [T] index of each kept text token in the flattened [B * S].
        buckets: the frames to cluster; their kept tokens, one bucket after the other, are the visual rows.
        rows: [B, L] which row stands where; T + G (one past the last) at padding.
        real: [B, L] bool, False at padding.
        sources: [B, L] for each place a token of the original sample with the same neighbours in order: itself for
            text, the i-th token of the frame for its i-th kept one; 0 at padding.
    """

    text: np.ndarray
    buckets: tuple[Bucket, ...]
    rows: np.ndarray
    real: np.ndarray
    sources: np.ndarray


def compressed_layout(layout: PromptLayout, budget: Callable[[int], int], left: bool | None = None) -> CompressedLayout:
    """Work out the compressed batch.

    Args:
        budget: tokens of a frame -> how many of them are kept.
        left: whether padding goes to the left, so that the last place of every sample is its last token, as generation
            needs it; None keeps it on its side, on the left where there was none.
    """
    buckets, visual_rows = _buckets(layout.spans, budget)
    text_mask = layout.real & ~layout.visual
    text = np.flatnonzero(text_mask.reshape(-1))
    text_row = np.cumsum(text_mask.reshape(-1)).reshape(text_mask.shape) - 1
    by_sample: dict[int, list[tuple[Span, list[np.ndarray]]]] = {}
    for span, rows in zip(layout.spans, visual_rows):
        by_sample.setdefault(span.sample, []).append((span, rows))
    pieces = [
        _compress_sample(text_mask[b], text_row[b], by_sample.get(b, []), offset=len(text))
        for b in range(layout.real.shape[0])
    ]
    length = max(len(rows) for rows, _ in pieces)
    if left is None:
        left = not (layout.real[:, 0].all() and not layout.real[:, -1].all())
    empty = len(text) + sum(int(bucket.budgets.sum()) for bucket in buckets)
    rows = np.full((len(pieces), length), empty)
    sources = np.zeros((len(pieces), length), dtype=np.int64)
    for b, (sample_rows, sample_sources) in enumerate(pieces):
        place = slice(length - len(sample_rows), length) if left else slice(0, len(sample_rows))
        rows[b, place], sources[b, place] = sample_rows, sample_sources
    return CompressedLayout(text, buckets, rows, rows != empty, sources)


def _compress_sample(
    text: np.ndarray, text_row: np.ndarray, spans: list[tuple[Span, list[np.ndarray]]], offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, sources) of one sample, without padding."""
    rows, sources, at = [], [], 0
    for span, frame_rows in [*spans, (None, [])]:
        end = len(text) if span is None else span.start
        kept = at + np.flatnonzero(text[at:end])
        rows.append(text_row[kept])
        sources.append(kept)
        for frame, visual in enumerate(frame_rows):
            rows.append(offset + visual)
            sources.append(span.start + frame * span.frame_tokens + np.arange(len(visual)))
        at = end if span is None else span.start + span.tokens
    return np.concatenate(rows), np.concatenate(sources)


def _buckets(spans: Sequence[Span], budget: Callable[[int], int]) -> tuple[tuple[Bucket, ...], list[list[np.ndarray]]]:
    """The batch's frames in buckets of like size, and for every span, frame by frame, the rows of its kept tokens.

    A bucket holds sizes between two powers of two, so that neither padding (at most half) nor the number of buckets
    (at most log2 of the largest frame) grows with the batch.
    """
    frames = [
        (s, span.feature + t * span.frame_tokens, span.frame_tokens)
        for s, span in enumerate(spans)
        for t in range(span.grid[0])
    ]
    classes: dict[int, list[int]] = {}
    for number, (_, _, tokens) in enumerate(frames):
        classes.setdefault((tokens - 1).bit_length(), []).append(number)
    rows: list[list[np.ndarray]] = [[] for _ in spans]
    frame_rows: dict[int, np.ndarray] = {}
    buckets, at = [], 0
    for size in sorted(classes):
        numbers = np.array(classes[size])
        starts = np.array([frames[n][1] for n in numbers])
        counts = np.array([frames[n][2] for n in numbers])
        budgets = np.array([budget(int(count)) for count in counts])
        index = np.arange(counts.max())
        valid = index < counts[:, None]
        features = np.where(valid, starts[:, None] + index, 0)
        buckets.append(Bucket(features, None if valid.all() else valid, budgets))
        for number, kept in zip(numbers, budgets):
            frame_rows[int(number)] = np.arange(at, at + kept)
            at += int(kept)
    for number, (s, _, _) in enumerate(frames):
        rows[s].append(frame_rows[number])
    return tuple(buckets), rows
