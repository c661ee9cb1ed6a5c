"""What a step at the pixels keeps of a request's images, found on the host before anything is sent to the model.

The patches of dropped cells are not sent. The kept patches come with the group of every visual token, numbered within
the item, so that the item can be cached, and encoded together with items of other requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.items import item_sources
from ppe_npu.engine.pixels import Chosen, PixelValues
from ppe_npu.models.pixels import KeptPatches


def without_dropped(
    compression: Compression, pixels: torch.Tensor, grids: torch.Tensor, values: PixelValues
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept patches [P, values of a patch] of images, and the images' cells [visual tokens] int64 (item_sources).

    Args:
        pixels: [patches, values of a patch] of all images, in any dtype. grids: [n, 3] patches.
        values: how these pixels are normalised, see pixel_numbers.
    """
    sources = item_sources(compression, pixels, grids.tolist(), values)
    kept = kept_patches(sources, grids, compression.vision.merge_size)
    return kept.picked(pixels), torch.from_numpy(np.concatenate(sources))


def split_cells(cells: torch.Tensor, grids: Sequence[Sequence[int]], merge_size: int) -> list[np.ndarray]:
    """The cells of each image, split from those of all images [visual tokens]. grids: each image's, in patches."""
    ends = np.cumsum([int(np.prod(grid)) // merge_size**2 for grid in grids])
    return np.split(cells.cpu().numpy(), ends[:-1])


def kept_patches(sources: Sequence[np.ndarray], grids: torch.Tensor, merge_size: int) -> KeptPatches:
    """The patches of images that a vision tower is given. sources: the cells of each image. grids: [n, 3] patches."""
    return KeptPatches.of(Chosen.of(sources), grids, merge_size, int(grids.prod(dim=1).sum()))


def patches_kept(sources: Sequence[np.ndarray], merge_size: int) -> list[int]:
    """How many patches of each image go into the vision tower."""
    return [int((source == np.arange(len(source))).sum()) * merge_size**2 for source in sources]


def pixel_numbers(pixels: torch.Tensor, normalised: PixelValues) -> PixelValues:
    """How an engine's pixels are normalised: not at all if they are bytes, because the engine then normalises them on
    the device; else as by the processor."""
    if pixels.dtype != torch.uint8:
        return normalised
    channels = len(normalised.mean)
    return PixelValues(normalised.frames, (0.0,) * channels, (1.0,) * channels, 1 / 255)
