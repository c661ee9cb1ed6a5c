"""What an engine's fields say of the shape of images and videos: patches, or the tiles that a prompt has of them."""

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
    """Of families whose images and videos are grids of patches, of any size."""

    field = "{}_grid_thw"

    def of(self, kind: str, said: Any) -> list[Shape]:
        """The shape of each image, or video, from the numbers that the field has of them [n, ...]."""
        return torch.as_tensor(said).tolist()

    def rows(self, shape: Shape, tokens: int) -> tuple[int, int]:
        """How many rows an item of so many tokens has in the field of its pixels, and in that of ready features."""
        return int(np.prod(shape)), tokens


class Tiles:
    """Of families whose images are tiles of one size, that follow each other, and whose videos are frames of it, that
    stand apart.

    Args:
        side: (height, width) of a tile, in visual tokens.
    """

    field = "{}_num_patches"

    def __init__(self, side: Sequence[int]):
        self.side = tuple(side)

    def of(self, kind: str, said: Any) -> list[Shape]:
        """As Grids.of()."""
        counts = torch.as_tensor(said).flatten().tolist()
        if kind == IMAGE:
            return [Parts([Part(kind, 0, (count, *self.side))]) for count in counts]
        return [Parts([Part(kind, 0, (1, *self.side))] * count) for count in counts]

    def rows(self, shape: Shape, tokens: int) -> tuple[int, int]:
        """As Grids.rows()."""
        return tokens // int(np.prod(self.side)), 1


def shapes_of(hf_config: Any, compression: Compression) -> Grids | Tiles:
    """How the shape of a model's images and videos is said."""
    return Tiles(FAMILIES[hf_config.model_type].tile(hf_config)) if compression.axes == 1 else Grids()


def shapes_in(shapes: Grids | Tiles, kind: str, fields: Mapping[str, Any]) -> list[Shape] | None:
    """The shape of each image, or video, of these fields; None where there are none."""
    said = fields.get(shapes.field.format(kind))
    return None if said is None else shapes.of(kind, said)


def batches(tokens: Sequence[int], most: int) -> list[slice]:
    """Items in order, of which each batch has at most so many tokens, or is a single item."""
    out, start, held = [], 0, 0
    for item, count in enumerate(tokens):
        if item > start and held + count > most:
            out.append(slice(start, item))
            start, held = item, 0
        held += count
    return [*out, slice(start, len(tokens))] if len(tokens) else out


def fields_of(items: slice, fields: Mapping[str, Any], rows: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What an engine's fields, of which each holds all items of a kind, say of some of them.

    Args:
        fields: those of pixels and of ready features have an item's rows beside the next one's, a token's id is that of
            all items, and every other one has one row an item.
        rows: of each item as Grids.rows() gives them, or what is left of its pixels.
    """
    pixels, embeds = ([sum(counts[: end or 0]) for end in (items.start, items.stop)] for counts in zip(*rows))

    def own(key: str, value: Any) -> Any:
        if key.endswith("_token_id"):
            return value
        start, stop = pixels if key.startswith("pixel_values") else (items.start, items.stop)
        return value[slice(*embeds)] if key.endswith("_embeds") else value[start:stop]

    return {key: own(key, value) for key, value in fields.items()}
