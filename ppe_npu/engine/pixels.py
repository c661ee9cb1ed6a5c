"""The place "pixels": which cells of the batch's pictures go into the vision tower at all.

A cell is what becomes one visual token: a square of patches. A step at the pixels chooses cells by their values, before
the tower runs; the others are part of the group of the one that they lean on, and the tower never sees them (or not
from one of its blocks on, where a method says so). How many of each picture are chosen is known on the host before the
plan is made, so all that follows is laid out in advance, as ever. The host reads for that what was chosen, once;
nothing where it is known how many that will be and none leaves later, and nothing of pixels that lie on the host.
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
from ppe_npu.methods.positions.entries import among_equals, chosen

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
            InputError: patches that do not have these channels and frames; on the host, values that are not finite.
        """
        channels = len(self.mean)
        if pixels.shape[1] % (channels * self.frames):
            raise InputError(
                f"pixel_values have {pixels.shape[1]} values a patch: not {channels} channels of {self.frames} frames"
            )
        values = pixels.detach().unflatten(1, (channels, self.frames, -1))[:, :, 0].float()
        if device.on_cpu(values.device) and not values.sum().isfinite() and not values.isfinite().all():
            raise InputError("pixel_values hold NaN or infinite values: give what a processor makes of a picture")
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
        source: [V] int64, the kept token in whose group each one is; of a kept one itself. It lies on the host, or,
            where numbers are known without it, with the pixels.
        tokens, stay: of each frame of all images, then of all videos, how many tokens it has, and how many are kept.
        leave: how many blocks of the vision tower run on all tokens; -1: all of them. What is not kept leaves then.
    """

    source: torch.Tensor
    tokens: tuple[int, ...]
    stay: tuple[int, ...]
    leave: int = 0

    @classmethod
    def read(cls, source: torch.Tensor, tokens: Sequence[int], leave: int = 0) -> Chosen:
        """With the numbers that `source` says, which the host reads."""
        source = source.cpu()
        before = np.cumsum([0, *(source.numpy() == np.arange(len(source)))])
        return cls(source, tuple(tokens), tuple(np.diff(before[np.cumsum([0, *tokens])]).tolist()), leave)

    @classmethod
    def of(cls, sources: Sequence[np.ndarray]) -> Chosen:
        """Of images of one frame, by what each of them says of its own tokens, counted from 0."""
        starts = np.cumsum([0, *map(len, sources)])
        source = np.concatenate([own + start for own, start in zip(sources, starts)])
        return cls.read(torch.from_numpy(source), [len(own) for own in sources])

    @property
    def total(self) -> int:
        """How many are kept."""
        return sum(self.stay)

    @property
    def drops(self) -> bool:
        """Whether there is one that is not kept."""
        return self.total < len(self.source)

    def runs_whole(self, block: int) -> bool:
        """Whether a block of the vision tower, counted from 0, runs on all tokens."""
        return self.leave < 0 or block < self.leave

    def first(self, tokens: int) -> torch.Tensor:
        """[n] int64, `places` of the first so many tokens: whole frames."""
        return self.places[: int(self.counts([0], [tokens])[0])]

    @functools.cached_property
    def kept(self) -> torch.Tensor:
        """[V] bool."""
        return self.source == torch.arange(len(self.source), device=self.source.device)

    @functools.cached_property
    def places(self) -> torch.Tensor:
        """[kept] int64, which tokens are kept, rising."""
        return self.kept.int().sort(descending=True, stable=True).indices[: self.total]

    @functools.cached_property
    def on_host(self) -> np.ndarray:
        """[V] bool, `kept` for the host, which reads it if it lies elsewhere."""
        return self.kept.cpu().numpy()

    @property
    def labels(self) -> torch.Tensor:
        """[V] int64, in which kept one's group each token is, the first kept one's being 0."""
        return (self.kept.cumsum(0) - 1)[self.source]

    def counts(self, starts: Sequence[int] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """How many are kept of each run of whole frames, which start at these tokens and have so many."""
        ends, kept = (np.cumsum([0, *sizes]) for sizes in (self.tokens, self.stay))
        first = np.asarray(starts, np.int64)
        begin, end = (np.searchsorted(ends, place) for place in (first, first + np.asarray(tokens, np.int64)))
        return kept[end] - kept[begin]

    def held(self, k: int, rule: Rule, positions: torch.Tensor) -> torch.Tensor:
        """[kept, k] int64, which tokens speak for each group, or [kept, axes * k]: see members().

        Args:
            rule: as members(), among equals: what cells are dropped for is that they are alike.
            positions: [axes, V] int64, of every visual token.
        """
        known = {"positions": positions, "representatives": self.places[None]}
        return chosen(among_equals(rule), k, self.labels[None], None, self.total, **known)[0]


def leave_after(method: Method) -> int:
    """How many blocks of the vision tower run on all cells before those leave that a method drops; -1: all blocks; 0:
    they never enter it, or the method does not stand at the pixels."""
    return getattr(method, "leave_after", 0) if method.place == "pixels" else 0


def choose(
    method: Method,
    pixels: torch.Tensor | None,
    images: Sequence[tuple[int, int, int]],
    videos: Sequence[tuple[int, int, int]],
    values: PixelValues,
    merge: int,
) -> Chosen:
    """Choose cells of all pictures of a batch. The host reads the answer, once, where it hangs on it how many are kept.

    Args:
        method: with place "pixels".
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
