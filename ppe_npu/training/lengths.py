"""A record's length in tokens before and after compression, found from the headers of its files. A picture is read only
if its pixels decide how many of its tokens stay (a step at the pixels without an exact budget).

A video's tokens (data.lengths), and those of the seconds that Qwen3-VL's processor writes between them, follow from the
number, rate and size of its frames: the frames to read are planned as in ppe_npu.data.videos. So the numbers are those
of the collator's batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ppe_npu.backends.common import IGNORED
from ppe_npu.config import CompressionConfig
from ppe_npu.data.lengths import TokenCounter
from ppe_npu.data.placeholders import expand, image_ids, video_ids
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.tiles import frame_ids, is_tiled, tile_ids
from ppe_npu.data.videos import Video, VideoHeader, planned_video
from ppe_npu.errors import InputError
from ppe_npu.training.data import Fault, Record
from ppe_npu.training.tokens import Tokeniser

# Tokens before and after compression, visual tokens before and after it, and tokens of the answers.
Lengths = tuple[int, int, int, int, int]
_TEXTS = 1_000  # videos whose text is cached, of which a long one takes 30 KB


class Ruler:
    """Measures records, given as a list: returns the Lengths of each, or the Fault that keeps it from being used.

    Args:
        processor, compression, sampling, headers, max_length, showings: as in survey.survey.

    Raises:
        InputError: a chat template that is no ChatML.
    """

    def __init__(
        self,
        processor: Any,
        compression: CompressionConfig,
        sampling: VideoSampling,
        headers: Mapping[str, Mapping[str, Any]],
        max_length: int | None = None,
        showings: int = 1,
    ) -> None:
        self.processor, self.sampling, self.headers, self.max_length = processor, sampling, headers, max_length
        self.count = TokenCounter(processor, compression, showings)
        self.tokenise = Tokeniser(processor, memo=10_000)  # small, as most texts occur once
        self._measured: dict[Any, tuple[int, int]] = {}
        self._reads = compression.at_pixels is not None and compression.at_pixels.counts == "late"
        self._tiled = is_tiled(processor)
        self._marks = tile_ids(processor, 0) if self._tiled else image_ids(processor, 0)
        self._texts: dict[tuple[Any, float], torch.Tensor] = {}
        # A model family writes seconds into every video or into none. Only if it does, a video's text must be computed.
        blank = VideoHeader(2, 1.0, 1, 1)
        self._seconds = not self._tiled and len(video_ids(processor, self._planned(blank, ""), 0)) > len(self._marks)

    def __call__(self, records: Sequence[Record]) -> list[Lengths | Fault]:
        return [self._measure(record) for record in records]

    def _measure(self, record: Record) -> Lengths | Fault:
        try:
            lengths = self._lengths(record)
            if self.max_length is not None and lengths[1] > self.max_length:
                raise InputError(f"too long: {lengths[1]:,} tokens after compression, max_length {self.max_length:,}")
        except InputError as error:
            return Fault(record.where, record.id, str(error).removeprefix(record.where).removeprefix(":").strip())
        return lengths

    def _lengths(self, record: Record) -> Lengths:
        sample = self.tokenise(record)
        visuals = [self._visual("image", path) for path in record.images]
        visuals += [self._visual("video", path) for path in record.videos]
        texts = {"image": [self._marks] * len(record.images), "video": [self._text(path) for path in record.videos]}
        text = len(expand(self.processor, [sample.ids.tolist()], texts)[0][0])
        before, after = (sum(column) for column in zip((0, 0), *visuals))
        return text + before, text + after, before, after, int((sample.labels != IGNORED).sum())

    def _visual(self, kind: str, path: str) -> tuple[int, int]:
        """(tokens before, after) of one file, kept for further files of the same size."""
        header = self.headers[kind][path]
        if isinstance(header, InputError):
            raise header
        video = None if kind == "image" else self._planned(header, path)
        key = (kind, header if video is None else tuple(video.frames.shape))
        key = (kind, path) if video is None and self._reads else key
        if key not in self._measured:
            if video is None:
                self._measured[key] = self.count.image(*header, path)
            else:
                frames, _, height, width = video.frames.shape
                self._measured[key] = self.count.video(frames, height, width, self.sampling, path)
        return self._measured[key]

    def _text(self, path: str) -> torch.Tensor:
        """The ids that a video's placeholder becomes, without its visual tokens."""
        if not self._seconds and not self._tiled:
            return self._marks
        header = self.headers["video"][path]
        planned = self._planned(header, path)
        if self._tiled:
            ids = frame_ids(self.processor, len(planned.frames))
            return ids[ids != self.processor.image_token_id]
        key = (planned.indices, header.fps)
        if key not in self._texts:
            if len(self._texts) >= _TEXTS:
                self._texts.clear()
            self._texts[key] = video_ids(self.processor, planned, 0)
        return self._texts[key]

    def _planned(self, header: VideoHeader, path: str) -> Video:
        multiple = 1 if self._tiled else self.processor.video_processor.temporal_patch_size
        return planned_video(header, path, self.sampling, multiple)
