"""The cells of a picture, from which a step at the pixels chooses; found with a processor, without a model."""

from __future__ import annotations

from typing import Any

import torch

from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import process_visuals
from ppe_npu.data.tiles import is_tiled
from ppe_npu.models.pixels import processed_cells


def telling_cells(config: CompressionConfig, processor: Any, image: Any, showings: int = 1) -> torch.Tensor | None:
    """[rows, columns, values] in [0, 1], the cells of a picture whose pixels decide how many of its tokens stay, as
    CompressionConfig.tokens_kept takes them; the picture is read and processed. None if its size alone decides.

    Args:
        image: as in a message. showings: how often it is shown.

    Raises:
        InputError: a picture that cannot be read or processed.
    """
    step = config.at_pixels
    if step is None or step.counts == "exact" or showings > 1 or is_tiled(processor):
        return None
    found, _ = process_visuals(processor, [image], [])
    return processed_cells(processor, found["pixel_values"], found["image_grid_thw"][0].tolist())
