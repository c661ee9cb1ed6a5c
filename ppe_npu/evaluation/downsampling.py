"""The control of every table: the dense model on pictures and frames that were made smaller before it saw them, so far
that it has as many visual tokens as a method keeps. What a method gains must be more than this gives for nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ppe_npu.compat import set_pixels
from ppe_npu.data.pictures import load_image
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import VideoFrame
from ppe_npu.errors import InputError
from ppe_npu.evaluation.answers import ModelAnswers
from ppe_npu.evaluation.generation import Generated
from ppe_npu.evaluation.samples import Measure, visuals


class SmallerInput(ModelAnswers):
    """ModelAnswers of a dense model whose pictures and frames have `share` of their tokens.

    Args:
        share: of the visual tokens that the whole picture would have, in (0, 1).
        others: as ModelAnswers.

    Raises:
        InputError: a share that is none.
    """

    def __init__(self, *args: Any, share: float, **more: Any) -> None:
        if not 0 < share < 1:
            raise InputError(f"share={share} of the visual tokens must be between 0 and 1")
        super().__init__(*args, **more)
        self.share, self._whole = share, self.processor
        # The least size counts no more: small pictures would be made large again.
        self.processor = copy.copy(self.processor)
        self.processor.image_processor = copy.deepcopy(self.processor.image_processor)
        whole = self._whole.image_processor
        set_pixels(self.processor.image_processor, _unit(whole) ** 2, whole.size["longest_edge"])

    def settings(self) -> dict[str, Any]:
        whole = self.processor
        self.processor = self._whole  # what is asked for is said of the whole pictures
        try:
            return {**super().settings(), "smaller_input": self.share}
        finally:
            self.processor = whole

    def measure(self, sample: Mapping[str, Any]) -> Measure:
        found = super().measure({**sample, **({"sampling": self._frames(sample)} if _has_video(sample) else {})})
        return replace(
            found, before=max(int(found.before * self.share), 1), after=max(int(found.after * self.share), 1)
        )

    def prepare(self, samples: Sequence[Mapping[str, Any]]) -> Any:
        return super().prepare([self._smaller(sample) for sample in samples])

    def answer(self, inputs: Mapping[str, Any]) -> Generated:
        """As of the whole pictures: `tokens_before` is what they would have had, by the share."""
        found = super().answer(inputs)
        return replace(found, tokens_before=[round(count / self.share) for count in found.tokens_before])

    def seen_size(self, width: int, height: int) -> tuple[int, int]:
        return super().seen_size(*smaller_size(width, height, self._whole.image_processor, self.share))

    def _smaller(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with smaller pictures in memory, or smaller frames asked for."""
        found = {key: sample[key] for key in sample if key not in ("image", "image_path")}
        pictures = visuals(sample)["image"]
        if pictures:
            found["image"] = [
                smaller(_loaded(picture), self._whole.image_processor, self.share) for picture in pictures
            ]
        if _has_video(sample):
            found["sampling"] = self._frames(sample)
        return found

    def _frames(self, sample: Mapping[str, Any]) -> VideoSampling:
        """The sample's frames, each with `share` of its tokens at most; fewer frames are not taken."""
        own, maker = sample.get("sampling") or VideoSampling(), self._whole.video_processor
        asked = (self.sampling or VideoSampling()).within(own)
        unit = _unit(maker) ** 2
        most = asked.max_pixels or maker.size["longest_edge"]
        budget = None if asked.total_pixels is None else max(int(asked.total_pixels * self.share), unit)
        bounds = {"min_pixels": unit, "max_pixels": max(int(most * self.share), unit), "total_pixels": budget}
        return replace(own, **bounds)


def smaller(picture: Image.Image, maker: Any, share: float) -> Image.Image:
    """A picture that is resized to `share` of the tokens that it would have, to within a row and a column of them.

    Args:
        maker: the image processor, whose bounds the whole picture is brought into first.
    """
    return picture.resize(smaller_size(picture.width, picture.height, maker, share), Image.Resampling.BICUBIC)


def smaller_size(width: int, height: int, maker: Any, share: float) -> tuple[int, int]:
    """(width, height) that smaller() gives a picture of this size."""
    unit = _unit(maker)
    bounds = {"min_pixels": maker.size["shortest_edge"], "max_pixels": maker.size["longest_edge"]}
    tokens = maker.get_number_of_image_patches(height, width, bounds) // maker.merge_size**2
    rows, columns = _grid(max(tokens * share, 1.0), height / width)
    return columns * unit, rows * unit


def _grid(tokens: float, tall: float) -> tuple[int, int]:
    """(rows, columns) whose product is nearest to `tokens`, of the two roundings of each that keep the shape."""
    rows, columns = math.sqrt(tokens * tall), math.sqrt(tokens / tall)
    near = [(max(r, 1), max(c, 1)) for r in (int(rows), int(rows) + 1) for c in (int(columns), int(columns) + 1)]
    return min(near, key=lambda grid: (abs(grid[0] * grid[1] - tokens), abs(grid[0] / grid[1] - tall)))


def _loaded(picture: Any) -> Image.Image:
    return picture.load() if isinstance(picture, VideoFrame) else load_image(picture)


def _has_video(sample: Mapping[str, Any]) -> bool:
    return sample.get("video_path") is not None


def _unit(maker: Any) -> int:
    """Pixels of a token along its side."""
    return maker.patch_size * maker.merge_size
