"""Merges images and videos one by one, for serving engines, which encode them apart from any prompt.

Such an engine encodes an image or a video once, whichever prompts contain it, and may read the result in pieces, much
later. So an item is merged here as a prompt that contains nothing else, and its position rows count from 0. In a real
prompt, the position that the item counts from is added to them. How many positions later the text goes on follows from
the item's grid alone, or, with a step at the pixels, from what that step keeps, which is found on the host before
anything else. Only methods that need nothing but the item's own pixels and tokens can be used; the others are refused
by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.pixels import Chosen, PixelValues, choose, leave_after, numbered_by_kept
from ppe_npu.engine.plan import PromptPlan
from ppe_npu.engine.positions import grid_positions
from ppe_npu.engine.rounds import as_tensor
from ppe_npu.engine.spans import IMAGE, Parts, VisionTokens, item_spans
from ppe_npu.errors import InputError
from ppe_npu.methods.positions.base import RUNS

# An item's (frames, height, width) in patches; or its parts in a prompt, for a family without a grid of patches.
Shape = Sequence[int] | Parts
_NEEDS = {"pixels", "tokens", "places", "sizes"}


@dataclass(frozen=True)
class ItemRun:
    """A run of visual tokens of an image or a video in a prompt: all of it, or one frame if the prompt has text between
    frames.

    Args:
        kept: how many of its tokens stay.
        extent: the position of the text after it minus the position that it counts from.
    """

    kept: int
    extent: int


@dataclass(frozen=True)
class MergedItem:
    """An image or a video after its steps.

    Args:
        features: [kept, C].
        rows: [R, kept] int64 positions, R = axes * K, each of its runs counted from 0.
        deepstack: for each of the first decoder layers [kept, C], what is added to its output.
    """

    features: torch.Tensor
    rows: torch.Tensor
    deepstack: tuple[torch.Tensor, ...] = ()


def check_items(compression: Compression) -> None:
    """Raise InputError unless items can be merged one by one: one length for all decoder layers, exact counts, and
    methods that look at nothing but the item's own tokens."""
    if compression.layers:
        raise InputError(
            f"layers={list(compression.layers)}: a server's KV cache has one length for all decoder layers, so none "
            "can see fewer tokens than others; leave layers out"
        )
    if compression.config.proportional_attention:
        raise InputError("proportional_attention: a server's attention cannot add to the scores of keys; leave it out")
    if compression.config.rule.table != RUNS:
        raise InputError(
            f"members={compression.config.members}: a server's rotary embedding rotates a channel by one position, not "
            "by the mean of several; use another rule, such as spread"
        )
    for method in compression.config.methods:
        if method.place == "tower":
            raise InputError(
                f"{method.name}: a step at the tower runs between its blocks, but a serving engine runs all blocks "
                "itself; use a step at the pixels or at the input"
            )
        if leave_after(method):
            after = leave_after(method)
            raise InputError(f"{method.name} leave_after={after}: a serving engine gets only kept cells; leave it out")
        if method.place == "pixels":
            continue  # its counts are known once the processor has the picture
        if method.counts == "late":
            raise InputError(
                f"{method.name}: how many tokens it keeps is known only from the features, but a server needs a "
                "prompt's length before it has any; use a method with exact counts"
            )
        others = sorted(method.needs - _NEEDS)
        if others:
            raise InputError(
                f"{method.name} looks at {', '.join(others)}, but a server merges each item from its tokens alone; use "
                "a method that needs nothing else"
            )
        if compression.vision.frames_apart and len(method.kept_cells([4, 4])) == 1:
            raise InputError(
                f"{method.name}: its frames compete and have text between them, so that how many tokens each keeps "
                "depends on the features; use a method that groups each frame by itself"
            )


def item_sources(
    compression: Compression,
    pixels: torch.Tensor,
    grids: Sequence[Sequence[int]],
    values: PixelValues,
) -> list[np.ndarray]:
    """For each image [its visual tokens] int64: the index of the kept token in whose group the step at the pixels puts
    each token; for a kept token its own index. The host waits for each image whose pixels are on a device.

    Args:
        pixels: [patches, values of a patch] of all images. grids: (frames, height, width) of each in patches.
        values: how the pixels were normalised.
    """
    method, merge = compression.config.at_pixels, compression.vision.merge_size
    assert method is not None, "only a step at the pixels has sources"
    parts = pixels.split([int(np.prod(grid)) for grid in grids])
    cells = [(frames, height // merge, width // merge) for frames, height, width in grids]
    found = [choose(method, part, [grid], [], values, merge) for part, grid in zip(parts, cells)]
    return [chosen.source.cpu().numpy() for chosen in found]


def item_runs(
    compression: Compression,
    kind: str,
    grid_thw: Shape,
    seconds_per_frame: float = 1.0,
    source: np.ndarray | None = None,
) -> list[ItemRun]:
    """The runs of an item, in order, computed from its grid.

    Args:
        kind: "image" or "video".
        grid_thw: (frames, height, width) in patches, or Parts.
        seconds_per_frame: the time between a video's frames.
        source: what item_sources() returns for an image, if there is a step at the pixels. None: if that step has late
            counts, `kept` is an upper bound.

    Raises:
        InputError: height or width is not a positive multiple of the merge size.
    """
    vision, config = compression.vision, compression.config
    spans = item_spans(kind, grid_thw, seconds_per_frame, vision)
    if source is None:
        plain = compression.axes == 1  # a decoder that counts in one dimension: every token has a place in the text
        extents = item_extents(kind, grid_thw, vision, seconds_per_frame)
        extents = tuple(span.tokens for span in spans) if plain else extents
        kept = [config.span_tokens(span.grid[0], span.frame_tokens, video=kind != IMAGE) for span in spans]
        return [ItemRun(*run) for run in zip(kept, extents)]
    (span,), chosen = spans, Chosen.of([source])
    cells = list(chosen.stay)
    for method in config.stages[0][1]:
        cells = method.kept_cells(cells)
    positions = grid_positions(span, vision)
    if numbered_by_kept(config.at_pixels):
        positions = positions[:, chosen.on_host]
    return [ItemRun(sum(cells), int(positions.max()) + 1)]


def item_extents(kind: str, grid_thw: Shape, vision: VisionTokens, seconds_per_frame: float = 1.0) -> tuple[int, ...]:
    """For each run of an item, the position of the text after it minus the position that it counts from."""
    return tuple(
        int(grid_positions(span, vision).max()) + 1 for span in item_spans(kind, grid_thw, seconds_per_frame, vision)
    )


@torch.no_grad()
def merge_items(
    compression: Compression,
    kind: str,
    features: torch.Tensor,
    grids: Sequence[Shape],
    seconds_per_frame: Sequence[float] | None = None,
    deepstack: tuple[torch.Tensor, ...] = (),
    sources: Sequence[np.ndarray] | None = None,
) -> list[MergedItem]:
    """Merge images or videos, each by itself. The host does not wait for the device.

    Args:
        kind: "image" or "video", the same for all items.
        features: [V, C] of all items, one after the other; with a step at the pixels, of the tokens that it keeps.
        grids: (frames, height, width) of each item in patches, or Parts.
        seconds_per_frame: the time between each video's frames; None: 1.
        deepstack: for each of the first decoder layers [V, C], added to the visual tokens of its output.
        sources: what item_sources() returns, if there is a step at the pixels.

    Raises:
        InputError: the grids are not valid, or do not fit the features.
    """
    plan = _plan(compression, kind, grids, seconds_per_frame, None if sources is None else Chosen.of(sources))
    found = len(plan.visual)
    if found != len(features):
        shown = [[part.grid for part in grid] if isinstance(grid, Parts) else list(grid) for grid in grids]
        raise InputError(
            f"{kind}_grid_thw {shown} describe {found} tokens, but there are {len(features)} features: give the grids "
            "of these features"
        )
    text = features.new_zeros(len(plan.before(0).text), features.shape[1])  # has the padding if nothing is merged
    run, embeds = compression.prefill(plan, text, features, deepstack=deepstack)
    rows, layers = run.rows[0], run.deepstack()
    assert rows is not None, "the rows of the first stage are known once it is merged"
    rows = rows.repeat_interleave(compression.axes * (compression.config.k or 1) // len(rows), dim=0)
    bases = _bases(plan) if compression.config.positions != "renumber" else None
    rows = rows if bases is None else rows - as_tensor(bases).to(rows.device)
    kept = [sum(cell.tokens for cell in plan.last.cells if cell.sample == item) for item in range(len(grids))]
    return [
        MergedItem(embeds[item, :count], rows[:, item, :count], tuple(layer[item, :count] for layer in layers))
        for item, count in enumerate(kept)
    ]


def _plan(
    compression: Compression,
    kind: str,
    grids: Sequence[Shape],
    seconds: Sequence[float] | None,
    chosen: Chosen | None,
) -> PromptPlan:
    """The plan of a batch of prompts that contain one item each and nothing else."""
    vision, image = compression.vision, kind == IMAGE
    counts = [sum(span.tokens for span in item_spans(kind, grid, 1.0, vision)) for grid in grids]
    token = vision.image_token_id if image else vision.video_token_id
    real = np.arange(max(counts)) < np.array(counts)[:, None]
    nothing = 1 + max(vision.image_token_id, vision.video_token_id)
    ids, mask = as_tensor(np.where(real, token, nothing)), as_tensor(real.astype(np.int64))
    shapes: list | Parts = list(grids)
    if grids and isinstance(grids[0], Parts):
        own = [(item, part) for item, parts in enumerate(grids) if isinstance(parts, Parts) for part in parts]
        shapes = Parts(replace(part, source=item) for item, part in own)
    images, videos = (shapes, None) if image else (None, shapes)
    seconds = None if image or seconds is None else list(seconds)
    return compression.plan(ids, mask, images, videos, seconds, left=False, chosen=chosen)


def _bases(plan: PromptPlan) -> np.ndarray | None:
    """[B, L] the position that the run of each kept token counts from; None if all count from 0."""
    spans, last = plan.layout.spans, plan.last
    if len(spans) == len(plan.layout.real):
        return None
    positions, width = plan.positions[0].numpy(), plan.layout.real.shape[1]
    out = np.zeros(last.real.shape, dtype=np.int64)
    for cell in last.cells:
        first = spans[cell.span].sample * width + spans[cell.span].start
        out[cell.sample, cell.start : cell.start + cell.tokens] = positions[first]
    return out
