"""Finds the visual tokens in a batch of prompts, on the host, from token ids, attention mask and grids."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ppe_npu.backends.common import IGNORED
from ppe_npu.engine.pixels import PixelValues
from ppe_npu.errors import InputError, counted
from ppe_npu.settings import check_fields, setting

IMAGE, VIDEO = "image", "video"


@dataclass(frozen=True)
class VisionTokens:
    """What a model family states about its visual tokens.

    Args:
        image_token_id, video_token_id: the placeholder ids that stand for one visual token each.
        merge_size: patches per token along height and along width.
        tokens_per_second: temporal positions per second of video; None: one per frame, whatever its duration.
        frames_apart: whether prompts have text between the frames of a video, so that each frame is a run of its own.
        tower_frames: whether the vision tower is given each frame of a video as a grid of its own.
        tower_blocks: how many blocks the vision tower has; 0 if methods cannot look or work inside it.
        tile_blocks: how many blocks a tower of tiles has, inside which only methods that rebuild what they drop work.
        whole_blocks: the blocks in which a whole frame attends to itself; None: all.
        window: tokens along the side of the windows of the other blocks.
        taps: blocks whose output the decoder is given in addition to the tower's.
        pixels: how pixel_values are normalised; None: the family has no place for steps at the pixels.
        text_behind_time: whether text after a video continues, in the unmodified model, after the video's largest t, h
            and w, as Qwen2.5-VL was trained, or only after its largest h and w, as in some releases of transformers.
    """

    image_token_id: int = setting(least=0)
    video_token_id: int = setting(least=0)
    merge_size: int = setting(least=1)
    tokens_per_second: int | float | None = setting(least=0)
    frames_apart: bool = False
    tower_frames: bool = False
    tower_blocks: int = setting(0, least=0)
    tile_blocks: int = setting(0, least=0)
    whole_blocks: tuple[int, ...] | None = None
    window: int = setting(0, least=0)
    taps: tuple[int, ...] = ()
    pixels: PixelValues | None = None
    text_behind_time: bool = True

    def __post_init__(self):
        check_fields(self, "vision config's")


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of one image or video in a prompt: all of it, one frame, or, of a picture that is tiled, the
    overview or the tiles.

    Args:
        modality: "image" or "video".
        source: index of its image or video among the batch's images, or videos.
        grid: (frames, height, width) in tokens, not in patches.
        seconds_per_frame: the time between a video's frames; 0 for an image.
    """

    modality: str
    source: int
    grid: tuple[int, int, int]
    seconds_per_frame: float = 0.0

    @property
    def frame_tokens(self) -> int:
        return self.grid[1] * self.grid[2]

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)


class Parts(list[Part]):
    """Takes the place of grids if a family's images and videos are not grids of patches: their parts, in the order of
    the prompts."""


@dataclass(frozen=True)
class Span(Part):
    """A part, and where it is in a batch of prompts; by default a prompt that is this part alone.

    Args:
        sample: row of the batch.
        start: index of its first token in that row.
        feature: index of its first token among the features of all images, then all videos.
    """

    sample: int = 0
    start: int = 0
    feature: int = 0


class HiddenItems(InputError):
    """The mask hides every token of some images or videos that are given.

    Args:
        unseen: for each kind the indices of these images or videos, in the batch's order.
    """

    def __init__(self, message: str, unseen: dict[str, set[int]]):
        super().__init__(message)
        self.unseen = unseen


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

    def question_columns(self, labels: np.ndarray) -> np.ndarray:
        """[B] int64, the column of the text token before each sample's answer: the first answer after all its images
        and videos. If that follows them directly, the column of its own first token; -1 if there is no answer.

        Args:
            labels: [B, S], IGNORED except at the answers' tokens.
        """
        out = np.full(len(labels), -1)
        for sample, (answered, visual, real) in enumerate(zip(labels != IGNORED, self.visual, self.real)):
            after = int(np.flatnonzero(visual).max(initial=-1)) + 1
            answers = after + np.flatnonzero((answered & real)[after:])
            if len(answers):
                text = after + np.flatnonzero(real[after : answers[0]])
                out[sample] = text[-1] if len(text) else answers[0]
        return out


def find_spans(
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None,
    image_grid_thw: Sequence[Sequence[int]] | Parts | None,
    video_grid_thw: Sequence[Sequence[int]] | Parts | None,
    seconds_per_frame: Sequence[float] | None,
    vision: VisionTokens,
    prompt: int | None = None,
    hidden: bool = False,
) -> PromptLayout:
    """Locate the spans of a batch.

    Args:
        input_ids: [B, S] integers.
        attention_mask: [B, S], nonzero at real tokens, or None.
        image_grid_thw, video_grid_thw: (frames, height, width) in patches, in the batch's order; or Parts. None if no
            images (or videos) are given at all: then their placeholders are text, as in transformers.
        seconds_per_frame: the time between each video's frames (transformers' second_per_grid_ts); None means 1 each.
        prompt: how many columns the prompt has; later columns were generated and are text. None: all.
        hidden: whether placeholders that the mask hides have features, too, as in transformers.

    Raises:
        InputError: placeholder tokens and grids disagree. The message starts with transformers' words and names the
            sample, how many tokens there are and how many there should be. HiddenItems, if they disagree only because
            of what the mask hides.
    """
    real = np.ones(input_ids.shape, dtype=bool) if attention_mask is None else attention_mask != 0
    given = {IMAGE: image_grid_thw, VIDEO: video_grid_thw}
    runs = {
        IMAGE: parts_of(IMAGE, image_grid_thw or (), None, vision),
        VIDEO: parts_of(VIDEO, video_grid_thw or (), seconds_per_frame, vision),
    }
    first = {IMAGE: 0, VIDEO: sum(part.tokens for part in runs[IMAGE])}
    tokens = {IMAGE: vision.image_token_id, VIDEO: vision.video_token_id}
    kinds = {kind: (input_ids == token) & (given[kind] is not None) for kind, token in tokens.items()}
    for placeholders in kinds.values():
        placeholders[:, prompt:] &= prompt is None
    visual = (kinds[IMAGE] | kinds[VIDEO]) & (real | hidden)
    try:
        return PromptLayout(real, visual, _placed(visual, kinds, runs, dict(first)))
    except InputError as error:
        message = _in_transformers_words(kinds, real, runs, hidden, str(error))
        unseen = {} if hidden else _unseen(real, kinds, runs, first)
        raise (HiddenItems(message, unseen) if unseen else InputError(message)) from None


def item_spans(
    kind: str, grid_thw: Sequence[int] | Parts, seconds_per_frame: float, vision: VisionTokens
) -> tuple[Span, ...]:
    """The runs of one image or video in a prompt that contains nothing else.

    Args:
        kind: "image" or "video". grid_thw: (frames, height, width) in patches, or Parts.
        seconds_per_frame: the time between a video's frames.

    Raises:
        InputError: height or width is not a positive multiple of the merge size.
    """
    spans: list[Span] = []
    start = 0
    shapes = grid_thw if isinstance(grid_thw, Parts) else [grid_thw]
    for part in parts_of(kind, shapes, [seconds_per_frame] if kind == VIDEO else None, vision):
        spans.append(Span(kind, 0, part.grid, part.seconds_per_frame, sample=0, start=start, feature=start))
        start += part.tokens
    return tuple(spans)


def _unseen(
    real: np.ndarray, kinds: dict[str, np.ndarray], runs: dict[str, list[Part]], first: dict[str, int]
) -> dict[str, set[int]]:
    """The images and videos of which the mask hides every token; {} unless it hides all or nothing of each."""
    try:
        spans = _placed(kinds[IMAGE] | kinds[VIDEO], kinds, runs, dict(first))
    except InputError:
        return {}
    seen: dict[str, set[int]] = {IMAGE: set(), VIDEO: set()}
    hidden: dict[str, set[int]] = {IMAGE: set(), VIDEO: set()}
    for span in spans:
        shown = real[span.sample, span.start : span.start + span.tokens]
        for found, sources in ((shown.any(), seen), (not shown.all(), hidden)):
            if found:
                sources[span.modality].add(span.source)
    return {} if any(seen[kind] & hidden[kind] for kind in seen) else hidden


def _in_transformers_words(
    kinds: dict[str, np.ndarray], real: np.ndarray, runs: dict[str, list[Part]], hidden: bool, message: str
) -> str:
    """The message, preceded by transformers' own words, which callers look for, and followed by what the mask hides."""
    for kind, places in kinds.items():
        found, features = int((places & (real | hidden)).sum()), sum(part.tokens for part in runs[kind])
        if found != features:
            theirs = (
                f"{kind.capitalize()} features and {kind} tokens do not match, tokens: {found}, features: {features}"
            )
            message = f"{theirs}: {message}"
        for sample in np.flatnonzero((places & ~real).any(axis=1))[: not hidden]:
            message += (
                f"; attention_mask hides {int((places & ~real)[sample].sum())} {kind} tokens of sample {sample}: leave "
                f"out what is hidden, its {kind}_grid_thw and its pixels too"
            )
    return message


def _placed(
    visual: np.ndarray, kinds: dict[str, np.ndarray], runs: dict[str, list[Part]], feature: dict[str, int]
) -> tuple[Span, ...]:
    """The spans, in order. feature: index of the first feature of each kind."""
    waiting, spans = {kind: list(reversed(found)) for kind, found in runs.items()}, []
    for sample in range(len(visual)):
        places, at = np.flatnonzero(visual[sample]), 0
        while at < len(places):
            start = int(places[at])
            kind = IMAGE if kinds[IMAGE][sample, start] else VIDEO
            if not waiting[kind]:
                raise InputError(
                    f"sample {sample} has more {kind} tokens than {kind}_grid_thw describes ({len(runs[kind])} "
                    "grids): give the pixels and grids of all of them, and the whole prompt at once"
                )
            part = waiting[kind].pop()
            own = part.modality, part.source, part.grid, part.seconds_per_frame
            span = Span(*own, sample, start, feature[kind])  # by keyword, it takes nearly twice as long
            tokens, run = span.tokens, kinds[kind][sample, start : start + span.tokens]
            if len(run) != tokens or not run.all():
                raise InputError(
                    f"sample {sample}: {kind} {span.source} has a grid of {tokens} tokens but its run of {kind} tokens "
                    f"at index {start} is {int(np.cumprod(run).sum())} long: give ids and grids of the same {kind}s"
                )
            spans.append(span)
            feature[kind] += tokens
            at += tokens
    for kind, left in waiting.items():
        if left:
            raise InputError(
                f"{kind}_grid_thw describes {counted(len(runs[kind]), kind)} but the prompts hold tokens of "
                f"{len(runs[kind]) - len(left)}: give one grid for each {kind} in the prompts"
            )
    return tuple(spans)


def parts_of(
    kind: str, grids: Sequence[Sequence[int]] | Parts, seconds: Sequence[float] | None, vision: VisionTokens
) -> list[Part]:
    """Every run of tokens that these images or videos have in the prompts.

    Raises:
        InputError: a grid is not valid, or there is not one of `seconds` for each.
    """
    if isinstance(grids, Parts):
        return list(grids)
    size, tokens = vision.merge_size, []
    for t, h, w in grids:
        if t < 1 or h < size or w < size or h % size or w % size:
            raise InputError(
                f"{kind}_grid_thw {(t, h, w)}: frames must be 1 or more, height and width positive multiples of {size} "
                "patches"
            )
        tokens.append((int(t), int(h) // size, int(w) // size))
    seconds = list(seconds or [1.0 if kind == VIDEO else 0.0] * len(tokens))
    if len(seconds) != len(tokens):
        videos = counted(len(tokens), "video")
        raise InputError(f"second_per_grid_ts has {len(seconds)} entries for {videos}: give one for each")
    parts = [Part(kind, source, grid, duration) for source, (grid, duration) in enumerate(zip(tokens, seconds))]
    if kind == VIDEO and vision.frames_apart:
        return [replace(part, grid=(1, *part.grid[1:])) for part in parts for _ in range(part.grid[0])]
    return parts
