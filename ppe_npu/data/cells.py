"""The cells of a picture, by a processor alone: what a step at the pixels chooses among, before a model is there."""

from __future__ import annotations

from typing import Any

import torch

from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import process_visuals
from ppe_npu.data.tiles import is_tiled
from ppe_npu.models.pixels import processed_cells


def telling_cells(config: CompressionConfig, processor: Any, image: Any, showings: int = 1) -> torch.Tensor | None:
    """[rows, columns, values] in [0, 1] of a picture of which its pixels alone say how many tokens stay, as
    CompressionConfig.tokens_kept takes them; None where its size says that. The picture is read and processed.

    Args:
        image: as a message's. showings: how often it is shown.

    Raises:
        InputError: a picture that cannot be read or processed.
    """
    step = config.at_pixels
    if step is None or step.counts == "exact" or showings > 1 or is_tiled(processor):
        return None
    found, _ = process_visuals(processor, [image], [])
    return processed_cells(processor, found["pixel_values"], found["image_grid_thw"][0].tolist())
