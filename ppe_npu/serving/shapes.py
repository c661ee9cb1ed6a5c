"""The shapes of images and videos, read from an engine's fields: grids of patches, or tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.items import Shape
from ppe_npu.engine.spans import IMAGE, Part, Parts
from ppe_npu.models.one_dimension_families import FAMILIES


class Grids:
    """The shapes of a family whose images and videos are grids of patches of any size.

    Attributes:
        field: name of the engine's field with the shapes, in which {} stands for image or video.
    """

    field = "{}_grid_thw"

    def of(self, kind: str, said: Any) -> list[Shape]:
        """The shapes of n images, or of n videos. said: the values of the field, [n, ...]."""
        return torch.as_tensor(said).tolist()

    def rows(self, shape: Shape, tokens: int) -> tuple[int, int]:
        """(number of rows of pixels, number of rows of precomputed features) of an image or video.

        Args:
            shape: one of those that of() returns. tokens: number of its visual tokens.
        """
        return int(np.prod(shape)), tokens


class Tiles:
    """The shapes of a family whose images are tiles of one size that follow each other in the prompt, and whose videos
    are frames of that size with text between them.

    Args:
        side: (height, width) of a tile, in visual tokens.
    """

    field = "{}_num_patches"

    def __init__(self, side: Sequence[int]):
        self.side = tuple(side)

    def of(self, kind: str, said: Any) -> list[Shape]:
        """See Grids.of()."""
        counts = torch.as_tensor(said).flatten().tolist()
        if kind == IMAGE:
            return [Parts([Part(kind, 0, (count, *self.side))]) for count in counts]
        return [Parts([Part(kind, 0, (1, *self.side))] * count) for count in counts]

    def rows(self, shape: Shape, tokens: int) -> tuple[int, int]:
        """See Grids.rows()."""
        return tokens // int(np.prod(self.side)), 1


def shapes_of(hf_config: Any, compression: Compression) -> Grids | Tiles:
    """The kind of shapes that a model's images and videos have."""
    return Tiles(FAMILIES[hf_config.model_type].tile(hf_config)) if compression.axes == 1 else Grids()


def shapes_in(shapes: Grids | Tiles, kind: str, fields: Mapping[str, Any]) -> list[Shape] | None:
    """The shape of each image, or video, in these fields; None if there are none."""
    said = fields.get(shapes.field.format(kind))
    return None if said is None else shapes.of(kind, said)


def batches(tokens: Sequence[int], most: int) -> list[slice]:
    """Slices of consecutive items; each has at most `most` tokens in all, or is a single item."""
    out, start, held = [], 0, 0
    for item, count in enumerate(tokens):
        if item > start and held + count > most:
            out.append(slice(start, item))
            start, held = item, 0
        held += count
    return [*out, slice(start, len(tokens))] if len(tokens) else out


def fields_of(items: slice, fields: Mapping[str, Any], rows: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The fields of some items, cut from an engine's fields, each of which holds all items of a kind.

    Args:
        fields: pixels and ready features have each item's rows one after the other, a token id applies to all items,
            and every other field has one row per item.
        rows: for each item, the result of Grids.rows(), with the rows of kept pixels only if pixels were dropped.
    """
    pixels, embeds = ([sum(counts[: end or 0]) for end in (items.start, items.stop)] for counts in zip(*rows))

    def own(key: str, value: Any) -> Any:
        if key.endswith("_token_id"):
            return value
        start, stop = pixels if key.startswith("pixel_values") else (items.start, items.stop)
        return value[slice(*embeds)] if key.endswith("_embeds") else value[start:stop]

    return {key: own(key, value) for key, value in fields.items()}
