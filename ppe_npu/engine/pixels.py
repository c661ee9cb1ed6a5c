"""The place "pixels": which cells of the batch's pictures go into the vision tower at all.

A cell is what becomes one visual token: a square of patches. A step at the pixels chooses cells by their values, before
the tower runs; the others are part of the group of the one that they lean on, and the tower never sees them. What is
chosen is known on the host before the plan is made (one read-back, none where the pixels are there already), so all
that follows is laid out in advance, as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ppe_npu.engine.members import among_equals, chosen
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method
from ppe_npu.methods.positions import rule_named

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_LEVELS = 255  # of a pixel of 8 bits, in [0, 1]
# What normalising in fp32 and undoing it may leave: some roundings of numbers of at most (1 - mean) / std, times std.
_ROUNDED = 16 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class PixelValues:
    """What the numbers of pixel_values are: (value in [0, 1] - mean) / std of a picture's channels.

    Args:
        frames: how many frames a patch has, one after the other in each channel. A picture repeats itself.
        mean, std: of each channel. scale: what a value is multiplied with afterwards, to be in [0, 1].
    """

    frames: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0

    def cells(self, pixels: torch.Tensor, grid: tuple[int, int], merge_size: int) -> torch.Tensor:
        """[H, W, D] fp32 in [0, 1], D = all values of a cell's patches, of their first frame.

        Args:
            pixels: [H * W * merge_size ** 2, values of a patch] of one picture, a cell's patches one after the other.
            grid: (H, W) in cells.

        Raises:
            InputError: patches that do not have these channels and frames.
        """
        channels = len(self.mean)
        if pixels.shape[1] % (channels * self.frames):
            raise InputError(
                f"pixel_values have {pixels.shape[1]} values a patch: not {channels} channels of {self.frames} frames"
            )
        values = pixels.detach().unflatten(1, (channels, self.frames, -1))[:, :, 0].float()
        if len({*zip(self.mean, self.std)}) == 1:
            values = values * self.std[0] + self.mean[0]
        else:
            std, mean = (values.new_tensor(numbers)[:, None] for numbers in (self.std, self.mean))
            values = values * std + mean
        values = values if self.scale == 1 else values * self.scale
        # Pictures have 8 bits: the same pixel is the same number, however a processor rounds when it normalises.
        level = (values * _LEVELS).round_().div_(_LEVELS)
        values = torch.where((values - level).abs_() <= _ROUNDED, level, values)
        return values.reshape(*grid, merge_size**2 * channels * values.shape[2])


@dataclass(frozen=True)
class Chosen:
    """What a step at the pixels keeps of a batch's visual tokens, in the order of the features: all images, all videos.

    Args:
        kept: [V] bool.
        source: [V] int64, the kept token in whose group each one is; of a kept one itself.
    """

    kept: np.ndarray
    source: np.ndarray

    @classmethod
    def of(cls, sources: Sequence[np.ndarray]) -> Chosen:
        """Of images by what each of them says of its own tokens, counted from 0."""
        starts = np.cumsum([0, *map(len, sources)])
        source = np.concatenate([np.zeros(0, np.int64), *(own + start for own, start in zip(sources, starts))])
        return cls(source == np.arange(len(source)), source)

    @property
    def number(self) -> np.ndarray:
        """[V] int64, how many kept ones come before each."""
        return np.cumsum(self.kept) - self.kept

    def counts(self, starts: Sequence[int] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """How many are kept of each run of tokens."""
        ends = np.concatenate([[0], np.cumsum(self.kept)])
        first = np.asarray(starts, np.int64)
        return ends[first + np.asarray(tokens, np.int64)] - ends[first]

    def held(self, k: int, rule: str, positions: np.ndarray) -> np.ndarray:
        """[kept, k] int64, which tokens speak for each group, or [kept, axes * k]: see members().

        Args:
            rule: as members(), among equals: what cells are dropped for is that they are alike.
            positions: [axes, V] int64, of every visual token.
        """
        how = rule_named(among_equals(rule))
        labels, kept = torch.from_numpy(self.number[self.source])[None], np.flatnonzero(self.kept)
        known = {"positions": torch.from_numpy(positions), "representatives": torch.from_numpy(kept)[None]}
        return chosen(how, k, labels, None, len(kept), **known)[0].numpy()


def choose(
    method: Method,
    pixels: torch.Tensor | None,
    grids: Sequence[Sequence[int]],
    videos: int,
    values: PixelValues,
    merge: int,
) -> Chosen:
    """Choose cells of all pictures of a batch; the host reads the answer once.

    Args:
        method: with place "pixels".
        pixels: [patches, values of a patch] of all images, as the model is given them; None without any.
        grids: (frames, height, width) in patches of each image.
        videos: how many visual tokens all videos have, which stay as they are.
        merge: patches along the side of a cell.
    """
    sources, at, first = [], 0, 0
    for frames, height, width in grids:
        for _ in range(frames):
            assert pixels is not None, "an image has pixels"
            grid, end = (height // merge, width // merge), at + height * width
            _, source = method.select(values.cells(pixels[at:end], grid, merge))
            sources.append(source.flatten() + first)
            at, first = end, first + source.numel()
    found = torch.cat(sources).cpu().numpy() if sources else np.zeros(0, np.int64)
    return Chosen.of([found, np.arange(videos)])
