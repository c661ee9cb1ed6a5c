"""What an engine's fields say of the shape of images and videos: patches, or the tiles that a prompt has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def shapes_of(hf_config: Any, compression: Compression) -> Grids | Tiles:
    """How the shape of a model's images and videos is said."""
    return Tiles(FAMILIES[hf_config.model_type].tile(hf_config)) if compression.axes == 1 else Grids()


def shapes_in(shapes: Grids | Tiles, kind: str, fields: Mapping[str, Any]) -> list[Shape] | None:
    """The shape of each image, or video, of these fields; None where there are none."""
    said = fields.get(shapes.field.format(kind))
    return None if said is None else shapes.of(kind, said)
