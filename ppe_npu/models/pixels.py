"""Steps at the pixels: the part of a batch's pictures that enters the vision tower, and how the tower runs on it.

The tower gets only the patches of the kept cells. What it would compute from the grids is computed here for whole grids
and selected for those patches, so that a patch keeps its place in its picture, and a frame's patches attend to each
other. transformers 5.9 and newer accept that as arguments; in older ones the tower's own methods are replaced on the
instance during the call. Nothing inside the tower changes.

Cells that are to leave later (PixelPrune's leave_after) enter with all others. The kept ones are selected between the
tower's blocks, by the pass of engine/dropping.py, or from its output.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.pixels import CLIP_MEAN, CLIP_STD, Chosen, PixelValues, choose
from ppe_npu.engine.rounds import as_tensor, upload
from ppe_npu.engine.spans import IMAGE, VIDEO, VisionTokens, parts_of
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method
from ppe_npu.utils.reading import UnreadableError, read_json

_FILES = ("preprocessor_config.json", "processor_config.json")  # a checkpoint's; the second may contain the first


def pixel_values(model, vision: VisionTokens, processor: Any = None) -> VisionTokens:
    """The family's VisionTokens with the normalisation of the processor; without a processor, that of the checkpoint
    that the model was loaded from, if it is a local folder; else the family's default.

    Raises:
        InputError: the processor's mean and std are not of the same channels.
    """
    if vision.pixels is None:
        return vision
    if processor is None:
        said = _checkpoint_settings(str(getattr(model.config, "_name_or_path", "") or ""))
    else:
        said = _processor_settings(getattr(processor, "image_processor", processor))
    return replace(vision, pixels=_normalised(vision.pixels, said))


def processed_cells(processor: Any, pixels: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """[rows, columns, values] in [0, 1], the cells of a picture as a processor returned it.

    Args:
        pixels: [patches, values of a patch] of one picture. grid: (1, height, width) in patches.

    Raises:
        InputError: the processor's mean and std are not of the same channels.
    """
    maker = getattr(processor, "image_processor", processor)
    values = _normalised(PixelValues(maker.temporal_patch_size, CLIP_MEAN, CLIP_STD), _processor_settings(maker))
    return values.cells(pixels, (grid[1] // maker.merge_size, grid[2] // maker.merge_size), maker.merge_size)


def _processor_settings(maker: Any) -> Mapping[str, Any]:
    names = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")
    return {name: getattr(maker, name, None) for name in names}


def _checkpoint_settings(folder: str) -> Mapping[str, Any]:
    for name in _FILES if os.path.isdir(folder) else ():
        with contextlib.suppress(UnreadableError):
            said = read_json(os.path.join(folder, name))
            said = said.get("image_processor", said) if isinstance(said, dict) else {}
            if "image_mean" in said:
                return said
    return {}


def _normalised(values: PixelValues, said: Mapping[str, Any]) -> PixelValues:
    """`values` with the mean, std and factor of a processor, as far as it states them."""
    mean, std = said.get("image_mean"), said.get("image_std")
    if said.get("do_normalize") is False:
        mean, std = [0.0] * len(values.mean), [1.0] * len(values.std)
    factor = 1.0 if said.get("do_rescale") is False else said.get("rescale_factor")
    scale = values.scale if factor is None else 1 / (255 * factor)
    mean, std = (
        own if given is None else tuple(map(float, given)) for own, given in ((values.mean, mean), (values.std, std))
    )
    if len(mean) != len(std) or not mean:
        raise InputError(
            f"the image processor's image_mean {mean} and image_std {std} do not have one value for each channel: save "
            "the checkpoint's processor again"
        )
    # The factor is nearly always 1 / 255, so that scale is 1 up to rounding: nothing needs to be multiplied then.
    return replace(values, mean=mean, std=std, scale=1.0 if abs(scale - 1) < 1e-6 else scale)


def chosen_cells(
    compression: Compression,
    method: Method,
    pixels: torch.Tensor | None,
    images: Sequence[Sequence[int]] | None,
    videos: Sequence[Sequence[int]] | None,
) -> Chosen | None:
    """The visual tokens of all images and videos that the step at the pixels keeps; None without images and videos.

    Args:
        pixels: [patches, values of a patch] of all images. images, videos: (frames, height, width) of each in patches.

    Raises:
        InputError: images without their pixels, or malformed grids.
    """
    vision = compression.vision
    pictures, clips = (
        [part.grid for part in parts_of(kind, grids or (), None, vision)]
        for kind, grids in ((IMAGE, images), (VIDEO, videos))
    )
    if not (pictures or clips):
        return None
    if pictures and pixels is None:
        raise InputError(
            f"{method.name} looks at the pixels of images, but only their features are given: give pixel_values"
        )
    assert vision.pixels is not None, "steps at the pixels are refused by families without pixels"
    return choose(method, pixels, pictures, clips, vision.pixels, vision.merge_size)


@dataclass(frozen=True)
class KeptPatches:
    """The patches of all images, then of all videos, that the tower is given.

    Args:
        rows: [P] int64 index of each kept patch, on the device that chose them.
        grid: [n, 3] patches of each image and video.
        tokens: [V] bool, which tokens are kept. merged: patches of a token.
        frames: [F] int64, how many kept patches each frame has.
    """

    rows: torch.Tensor
    grid: torch.Tensor
    tokens: torch.Tensor
    merged: int
    frames: torch.Tensor

    @classmethod
    def of(cls, chosen: Chosen, grid: torch.Tensor, merge_size: int, patches: int) -> KeptPatches:
        """For a tower whose input has `patches` patches before dropping: those of the first frames of `chosen`."""
        merged = merge_size**2
        given = np.cumsum(chosen.tokens) * merged <= patches
        frames = np.array(chosen.stay)[given]
        places = chosen.places[: int(frames.sum())]
        rows = (places[:, None] * merged + torch.arange(merged, device=places.device)).flatten()
        tokens = upload(chosen.kept[: patches // merged], grid.device)
        return cls(rows, grid, tokens, merged, upload(as_tensor(frames * merged), grid.device))

    @property
    def as_frames(self) -> torch.Tensor:
        """[F, 3] a grid for each frame, right only in its number of patches, for the borders that attention needs."""
        return torch.stack([torch.ones_like(self.frames), self.frames, torch.ones_like(self.frames)], dim=1)

    def picked(self, values: torch.Tensor) -> torch.Tensor:
        """[P, ...] the rows of values [all patches, ...] for the kept patches."""
        return values.index_select(0, upload(self.rows, values.device))

    def windows(self, index: torch.Tensor, borders: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The order of the kept tokens in a tower that works window by window, and the borders, in patches, of those
        windows that keep some [windows + 1]. index, borders: the same for all tokens."""
        index, borders = index.to(self.tokens.device), borders.to(self.tokens.device)
        kept = self.tokens[index]
        number = self.tokens.cumsum(0) - 1
        before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
        cut = before[borders.long() // self.merged] * self.merged
        return number[index[kept]], torch.unique_consecutive(cut).to(torch.int32)


def run_on_chosen(model, pixels: torch.Tensor, grid: torch.Tensor, chosen: Chosen, **more: Any):
    """A vision tower's output for the kept tokens of all images, then all videos, if any tokens are dropped.

    Args:
        model: the ...Model inside the one for conditional generation. pixels: [patches, values] of all patches.
        grid: [n, 3] patches of each image and video. more: further arguments of the tower.
    """
    tower, merge_size = model.visual, model.compression.vision.merge_size
    if not chosen.leave:
        return run_on_kept(tower, pixels, KeptPatches.of(chosen, grid, merge_size, len(pixels)), **more)
    # Upload before the tower starts, so that the host does not wait for it.
    kept = upload(chosen.first(len(pixels) // merge_size**2), grid.device)
    output = tower(pixels.to(grid.device, tower.dtype), grid_thw=grid, return_dict=True, **more)
    output.pooler_output = output.pooler_output.index_select(0, kept.to(output.pooler_output.device))
    if getattr(output, "deepstack_features", None):
        output.deepstack_features = [part.index_select(0, kept.to(part.device)) for part in output.deepstack_features]
    return output


def run_on_kept(tower, pixels: torch.Tensor, kept: KeptPatches, **more: Any):
    """A vision tower's output for the kept patches of pixels [patches, values].

    Args:
        more: further arguments of the tower.
    """
    pixels = kept.picked(pixels).to(kept.grid.device, tower.dtype)
    if hasattr(type(tower), "rot_pos_emb"):
        with _stood_in_for(tower, kept):
            return tower(pixels, grid_thw=kept.as_frames, return_dict=True, **more)
    return tower(pixels, grid_thw=kept.as_frames, **_arguments(tower, kept), return_dict=True, **more)


def _arguments(tower, kept: KeptPatches) -> dict[str, torch.Tensor]:
    """The arguments that a tower of transformers 5.9 and newer would otherwise compute from the grids."""
    own = vars(sys.modules[_known_class(tower).__module__])
    size = tower.config.spatial_merge_size
    arguments = {"position_ids": kept.picked(own["get_vision_position_ids"](kept.grid, size))}
    if "get_vision_window_index" in own:
        index = own["get_vision_window_index"](
            kept.grid, spatial_merge_size=size, window_size=tower.window_size, patch_size=tower.patch_size
        )
        arguments["window_index"], arguments["cu_window_seqlens"] = kept.windows(*index)
    if "get_vision_interpolation_indices_and_weights" in own:
        made = own["get_vision_interpolation_indices_and_weights"](
            kept.grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=size,
        )
        arguments["interp_indices"], arguments["interp_weights"] = map(kept.picked, made)
    elif "get_vision_bilinear_indices_and_weights" in own:  # until 5.14: [4, patches]
        made = own["get_vision_bilinear_indices_and_weights"](kept.grid, tower.num_grid_per_side, size)
        picked = (kept.picked(part.T).T for part in made)
        arguments["bilinear_indices"], arguments["bilinear_weights"] = picked
    return arguments


def _known_class(tower) -> type:
    """transformers' class of a tower, whose own class may be derived from it (by fully_shard)."""
    return next(base for base in type(tower).__mro__ if base.__module__.startswith("transformers.models."))


@contextlib.contextmanager
def _stood_in_for(tower, kept: KeptPatches) -> Iterator[None]:
    """Context for older transformers: the tower's methods that use the grids return the kept patches' values."""
    saved = {name: vars(tower)[name] for name in ("rot_pos_emb",) if name in vars(tower)}
    made: dict[str, Any] = {"rot_pos_emb": kept.picked(tower.rot_pos_emb(kept.grid))}
    if hasattr(tower, "fast_pos_embed_interpolate"):
        made["fast_pos_embed_interpolate"] = kept.picked(tower.fast_pos_embed_interpolate(kept.grid))
    if hasattr(tower, "get_window_index"):
        index, borders = tower.get_window_index(kept.grid)
        index, borders = kept.windows(index, torch.as_tensor(borders))
        made["get_window_index"] = index, borders.tolist()
    for name, value in made.items():
        vars(tower)[name] = lambda _grid, value=value: value
    try:
        yield
    finally:
        for name in made:
            vars(tower).pop(name)
        vars(tower).update(saved)
