"""The control of every table: the dense model on pictures and frames that are downsampled first, so that it gets as
many visual tokens as a method keeps. A method is only worth its effort if it does better than this."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ppe_npu.compat import set_pixels
from ppe_npu.data.inputs import video_grid
from ppe_npu.data.placeholders import sizes_whole_videos
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import load_still
from ppe_npu.errors import InputError
from ppe_npu.evaluation.answers import ModelAnswers
from ppe_npu.evaluation.generation import Generated
from ppe_npu.evaluation.samples import Measure, frames_taken, sampling_of, visuals

_MORE = (1.0, 1.08, 1.17, 1.26, 1.36, 1.5)  # factors of the wanted pixels that are tried as a bound


class SmallerInput(ModelAnswers):
    """ModelAnswers of a dense model whose pictures and frames are reduced to `share` of their tokens.

    Args:
        share: fraction, in (0, 1), of the visual tokens that the whole picture would have.
        others: as in ModelAnswers.

    Raises:
        InputError: `share` is not between 0 and 1.
    """

    def __init__(self, *args: Any, share: float, **more: Any) -> None:
        if not 0 < share < 1:
            raise InputError(f"share={share} of the visual tokens must be between 0 and 1")
        super().__init__(*args, **more)
        self.share, self._whole = share, self.processor
        # Each sample gets a rule of its own that includes `sampling` and the smaller frames; nothing may override it.
        self._asked, self.sampling = self.sampling, None
        # The smallest size is lowered to one token; otherwise small pictures would be enlarged again.
        self.processor = copy.copy(self.processor)
        self.processor.image_processor = copy.deepcopy(self.processor.image_processor)
        whole = self._whole.image_processor
        set_pixels(self.processor.image_processor, _unit(whole) ** 2, whole.size["longest_edge"])

    def settings(self) -> dict[str, Any]:
        small = self.processor
        self.processor, self.sampling = self._whole, self._asked  # settings describe the pictures before downsampling
        try:
            return {**super().settings(), "smaller_input": self.share}
        finally:
            self.processor, self.sampling = small, None

    def measure(self, sample: Mapping[str, Any]) -> Measure:
        if _has_video(sample):  # the bounds of its frames are in the sample's own rule
            return super().measure({**sample, "sampling": self._frames(sample)})
        found = super().measure(sample)
        return replace(
            found, before=max(int(found.before * self.share), 1), after=max(int(found.after * self.share), 1)
        )

    def prepare(self, samples: Sequence[Mapping[str, Any]]) -> Any:
        return super().prepare([self._smaller(sample) for sample in samples])

    def answer(self, inputs: Mapping[str, Any]) -> Generated:
        """ModelAnswers.answer(), but `tokens_before` is the number that whole pictures would have, by the share."""
        found = super().answer(inputs)
        return replace(found, tokens_before=[round(count / self.share) for count in found.tokens_before])

    def seen_size(self, width: int, height: int) -> tuple[int, int]:
        return super().seen_size(*smaller_size(width, height, self._whole.image_processor, self.share))

    def _smaller(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with smaller pictures in memory, or with a rule that asks for smaller frames."""
        found = {key: sample[key] for key in sample if key not in ("image", "image_path")}
        pictures = visuals(sample)["image"]
        if pictures:
            found["image"] = [
                smaller(load_still(picture), self._whole.image_processor, self.share) for picture in pictures
            ]
        if _has_video(sample):
            found["sampling"] = self._frames(sample)
        return found

    def _frames(self, sample: Mapping[str, Any]) -> VideoSampling:
        """The sample's rule with as many frames, each bounded to `share` of its tokens to within a row and a column."""
        asked = sampling_of(sample, self._asked)
        maker, path = self._whole.video_processor, visuals(sample)["video"][0]
        taken = frames_taken(path, asked, maker.temporal_patch_size)
        return replace(asked, **_bounds(maker, asked, taken, self.share))


def _bounds(maker: Any, asked: VideoSampling, size: tuple[int, int, int], share: float) -> dict[str, Any]:
    """Bounds of a frame's pixels that give a video of `size` (frames, height, width) `share` of its tokens."""
    frames, unit = size[0], _unit(maker) ** 2

    def pixels(sampling: VideoSampling) -> int:
        return math.prod(video_grid(maker, sampling, *size)[1:]) * maker.patch_size**2

    whole = pixels(asked)
    tried = []
    for more in _MORE:  # a processor rounds both sides down, so a larger bound may come closer
        most = max(int(whole * share * more), unit)
        # A budget is set only if the processor bounds whole videos, because it keeps videos of different lengths from
        # sharing a batch.
        budget = -(-most * frames // 2) if sizes_whole_videos(maker) else None
        bounds = {"min_pixels": unit, "max_pixels": most, "total_pixels": budget}
        tried.append((abs(pixels(replace(asked, **bounds)) - whole * share), most, bounds))
    return min(tried, key=lambda one: one[:2])[2]


def smaller(picture: Image.Image, maker: Any, share: float) -> Image.Image:
    """A picture resized to `share` of the tokens that it would have, to within a row and a column of tokens.

    Args:
        maker: the image processor; the tokens of the whole picture are those within its bounds.
    """
    return picture.resize(smaller_size(picture.width, picture.height, maker, share), Image.Resampling.BICUBIC)


def smaller_size(width: int, height: int, maker: Any, share: float) -> tuple[int, int]:
    """(width, height) to which smaller() resizes a picture of this size."""
    unit = _unit(maker)
    bounds = {"min_pixels": maker.size["shortest_edge"], "max_pixels": maker.size["longest_edge"]}
    tokens = maker.get_number_of_image_patches(height, width, bounds) // maker.merge_size**2
    rows, columns = _grid(max(tokens * share, 1.0), height / width)
    return columns * unit, rows * unit


def _grid(tokens: float, tall: float) -> tuple[int, int]:
    """(rows, columns) with the product nearest to `tokens`, rounding the sides of the exact shape down or up; `tall` is
    height / width."""
    rows, columns = math.sqrt(tokens * tall), math.sqrt(tokens / tall)
    near = [(max(r, 1), max(c, 1)) for r in (int(rows), int(rows) + 1) for c in (int(columns), int(columns) + 1)]
    return min(near, key=lambda grid: (abs(grid[0] * grid[1] - tokens), abs(grid[0] / grid[1] - tall)))


def _has_video(sample: Mapping[str, Any]) -> bool:
    return sample.get("video_path") is not None


def _unit(maker: Any) -> int:
    """Side of a token in pixels."""
    return maker.patch_size * maker.merge_size
