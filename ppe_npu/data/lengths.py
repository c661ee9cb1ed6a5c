"""The number of tokens of a picture or a video before and after compression, found from its size alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppe_npu.config import CompressionConfig
from ppe_npu.data.cells import telling_cells
from ppe_npu.data.inputs import video_grid
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.tiles import is_tiled, tile_count
from ppe_npu.errors import InputError, first_line


@dataclass(frozen=True)
class TokenCounter:
    """Counts visual tokens by the processor's own rules, so that the numbers are those of build_inputs' prompts.

    Attributes:
        processor: the checkpoint's.
        config: the compression.
        showings: how often every image is shown; more than once only for PVC's models.
    """

    processor: Any
    config: CompressionConfig
    showings: int = 1

    def image(self, height: int, width: int, image: Any = None) -> tuple[int, int]:
        """(tokens before, after compression) of a picture of this size.

        Args:
            image: as in a message; read if its pixels decide how many tokens stay. None: the most that can stay.

        Raises:
            InputError: a picture that the processor refuses, or that cannot be read.
        """
        if is_tiled(self.processor):
            frames, tokens = self.showings * tile_count(self.processor, height, width), self.processor.image_seq_length
        else:
            maker = self.processor.image_processor
            try:
                patches = maker.get_number_of_image_patches(height, width, {})
            except ValueError as error:  # the processor's own rule: too narrow
                raise InputError(f"image {image} cannot be processed ({first_line(error)}): leave it out") from error
            frames, tokens = self.showings, patches // maker.merge_size**2
        cells = None if image is None else telling_cells(self.config, self.processor, image, self.showings)
        return frames * tokens, self.config.span_tokens(frames, tokens, 0, self.showings > 1, cells)

    def video(self, frames: int, height: int, width: int, sampling: VideoSampling, path: str = "") -> tuple[int, int]:
        """(tokens before, after compression) of a video of which this many frames of this size are taken.

        Args:
            sampling: the rule that bounds the size of a frame. path: the video's, for messages.

        Raises:
            InputError: frames that the processor refuses.
        """
        if is_tiled(self.processor):
            steps, tokens = frames, self.processor.image_seq_length
        else:
            maker = self.processor.video_processor
            steps, rows, columns = video_grid(maker, sampling, frames, height, width, path)
            tokens = rows * columns // maker.merge_size**2
        return steps * tokens, self.config.span_tokens(steps, tokens, 0, True)
