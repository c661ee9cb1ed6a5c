"""The place "pixels": which cells of the batch's pictures go into the vision tower at all.

Here a cell is the square of patches that becomes one visual token. A step at the pixels chooses cells by their values,
before the tower runs. Every other cell joins the group of a kept cell, and the tower never sees it (or no longer sees
it after some block, if a method asks for that). The number of cells chosen from each picture is known on the host
before the plan is made, so that everything after it is laid out in advance, as without such a step. For this the host
reads the choice once, unless the pixels are on the host, or the number is known anyway and no cell leaves later.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ppe_npu.backends import device
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method
from ppe_npu.methods.positions import Rule
from ppe_npu.methods.positions.entries import among_equals, chosen_entries

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_LEVELS = 255  # steps of an 8-bit pixel value in [0, 1]
# The error of normalising in fp32 and undoing it: some roundings of numbers of at most (1 - mean) / std, times std.
_ROUNDED = 16 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class PixelValues:
    """How pixel_values were made: (value in [0, 1] - mean) / std for each channel of a picture.

    Args:
        frames: how many frames a patch has, one after the other in each channel; those of a picture are copies.
        mean, std: those of each channel. scale: the factor that then brings a value to [0, 1].
    """

    frames: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0

    def cells(self, pixels: torch.Tensor, grid: tuple[int, int], merge_size: int) -> torch.Tensor:
        """[H, W, D] fp32 in [0, 1], where D counts all values in the first frame of a cell's patches.

        Args:
            pixels: [H * W * merge_size ** 2, values of a patch] of one picture, a cell's patches one after the other.
            grid: (H, W) in cells.

        Raises:
            InputError: the patches do not have these channels and frames; on the host, values are not finite.
        """
        channels = len(self.mean)
        if pixels.shape[1] % (channels * self.frames):
            raise InputError(
                f"pixel_values have {pixels.shape[1]} values per patch, which do not divide into {channels} channels "
                f"of {self.frames} frames: give the output of this model's processor"
            )
        values = pixels.detach().unflatten(1, (channels, self.frames, -1))[:, :, 0].float()
        if device.on_cpu(values.device) and not values.sum().isfinite() and not values.isfinite().all():
            raise InputError("pixel_values hold NaN or infinite values: give a processor's output")
        if len({*zip(self.mean, self.std)}) == 1:
            values = values * self.std[0] + self.mean[0]
        else:
            std, mean = (values.new_tensor(numbers)[:, None] for numbers in (self.std, self.mean))
            values = values * std + mean
        values = values if self.scale == 1 else values * self.scale
        # Pictures have 8 bits: snap to levels, so that equal pixels are equal numbers however a processor rounds.
        level = (values * _LEVELS).round_().div_(_LEVELS)
        values = torch.where((values - level).abs_() <= _ROUNDED, level, values)
        return values.reshape(*grid, merge_size**2 * channels * values.shape[2])


@dataclass(frozen=True)
class Chosen:
    """What a step at the pixels keeps of a batch's visual tokens, in the order of the features: all images, all videos.

    Args:
        source: [V] int64, the kept token in whose group each token is; for a kept token itself. It is on the host, or
            on the pixels' device if the counts are known without it.
        tokens, stay: for each frame of all images, then of all videos, how many tokens it has, and how many are kept.
        leave: how many blocks of the vision tower run on all tokens before the others leave; -1: all blocks.
    """

    source: torch.Tensor
    tokens: tuple[int, ...]
    stay: tuple[int, ...]
    leave: int = 0

    @classmethod
    def read(cls, source: torch.Tensor, tokens: Sequence[int], leave: int = 0) -> Chosen:
        """With the counts that follow from `source`, which the host reads."""
        source = source.cpu()
        before = np.cumsum([0, *(source.numpy() == np.arange(len(source)))])
        return cls(source, tuple(tokens), tuple(np.diff(before[np.cumsum([0, *tokens])]).tolist()), leave)

    @classmethod
    def of(cls, sources: Sequence[np.ndarray]) -> Chosen:
        """From the source of each image (of one frame), in which its tokens are counted from 0."""
        starts = np.cumsum([0, *map(len, sources)])
        source = np.concatenate([own + start for own, start in zip(sources, starts)])
        return cls.read(torch.from_numpy(source), [len(own) for own in sources])

    @property
    def total(self) -> int:
        """The number of kept tokens."""
        return sum(self.stay)

    @property
    def drops(self) -> bool:
        """Whether any token is not kept."""
        return self.total < len(self.source)

    def runs_whole(self, block: int) -> bool:
        """Whether a block of the vision tower, counted from 0, runs on all tokens."""
        return self.leave < 0 or block < self.leave

    def first(self, tokens: int) -> torch.Tensor:
        """[n] int64, the part of `places` that is among the first `tokens` tokens, which must be whole frames."""
        return self.places[: int(self.counts([0], [tokens])[0])]

    @functools.cached_property
    def kept(self) -> torch.Tensor:
        """[V] bool."""
        return self.source == torch.arange(len(self.source), device=self.source.device)

    @functools.cached_property
    def places(self) -> torch.Tensor:
        """[kept] int64, the indices of the kept tokens, rising."""
        return self.kept.int().sort(descending=True, stable=True).indices[: self.total]

    @functools.cached_property
    def on_host(self) -> np.ndarray:
        """[V] bool, `kept` on the host, which reads it if it is on a device."""
        return self.kept.cpu().numpy()

    @property
    def labels(self) -> torch.Tensor:
        """[V] int64, the group of each token: the index of its source among the kept tokens."""
        return (self.kept.cumsum(0) - 1)[self.source]

    def counts(self, starts: Sequence[int] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """How many tokens are kept of each run of whole frames, given each run's first token and number of tokens."""
        ends, kept = (np.cumsum([0, *sizes]) for sizes in (self.tokens, self.stay))
        first = np.asarray(starts, np.int64)
        begin, end = (np.searchsorted(ends, place) for place in (first, first + np.asarray(tokens, np.int64)))
        return kept[end] - kept[begin]

    def held(self, k: int, rule: Rule, positions: torch.Tensor) -> torch.Tensor:
        """[kept, k] int64, the tokens whose positions each group keeps, or [kept, axes * k]: see members().

        Args:
            rule: as in members(); taken among equals, because cells are dropped for being alike.
            positions: [axes, V] int64 positions of every visual token.
        """
        known = {"positions": positions, "representatives": self.places[None]}
        return chosen_entries(among_equals(rule), k, self.labels[None], None, self.total, **known)[0]


def leave_after(method: Method) -> int:
    """How many blocks of the vision tower run on all cells before those that a method drops leave; -1: all blocks; 0:
    they never enter the tower, or the method is not at the pixels."""
    return method.leave_after if method.place == "pixels" else 0


def numbered_by_kept(method: Method | None) -> bool:
    """Whether the text after a picture is numbered from the cells that a step at the pixels keeps."""
    return method is not None and method.numbering == "kept"


def choose(
    method: Method,
    pixels: torch.Tensor | None,
    images: Sequence[tuple[int, int, int]],
    videos: Sequence[tuple[int, int, int]],
    values: PixelValues,
    merge: int,
) -> Chosen:
    """Choose cells of all pictures of a batch. The host reads the choice, once, if the method has late counts.

    Args:
        method: a method at the pixels.
        pixels: [patches, values of a patch] of all images, as the model is given them; None without any.
        images, videos: (frames, rows, columns) of each, in cells. Videos stay as they are.
        merge: patches along the side of a cell.
    """
    frames = [(rows, columns) for count, rows, columns in images for _ in range(count)]
    cells = [rows * columns for rows, columns in frames]
    others = [rows * columns for count, rows, columns in videos for _ in range(count)]
    ends, sources = [0, *itertools.accumulate(cells)], []
    for grid, first, end in zip(frames, ends, ends[1:]):
        assert pixels is not None, "an image has pixels"
        own = pixels[first * merge**2 : end * merge**2]
        sources.append(method.select(values.cells(own, grid, merge))[1].flatten() + first)
    where = sources[0].device if sources else "cpu"
    source = torch.cat([*sources, torch.arange(ends[-1], ends[-1] + sum(others), device=where)])
    leave = leave_after(method)
    if method.counts == "late":
        return Chosen.read(source, (*cells, *others), leave)
    return Chosen(source, (*cells, *others), (*map(method.kept, cells), *others), leave)
