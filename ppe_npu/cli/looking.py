"""Implements `ppe-npu describe --show`: draws the groups of a prompt's pictures and frames into a file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ppe_npu.config import CompressionConfig
from ppe_npu.data.pictures import load_image
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import Video, load_video
from ppe_npu.errors import InputError
from ppe_npu.files import check_writable, write_bytes
from ppe_npu.inspect.show import draw_visual
from ppe_npu.inspect.trace import Visual

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass
class GroupsPicture:
    """The file that is drawn, and the pictures that are drawn into it.

    Attributes:
        path: the file. token: the merged token to outline, counted over all images and videos, or None.
        seen: for each image or video, in the prompt's order, its picture or the first frame of each temporal step.
    """

    path: Path
    token: int | None
    config: CompressionConfig
    temporal_patch: int = 2
    seen: list[list[Image.Image]] = field(default_factory=list)

    @classmethod
    def of(cls, show: str | None, token: int | None, config: CompressionConfig) -> GroupsPicture | None:
        """From the values of --show and --token; None without --show.

        Raises:
            InputError: --token without --show, a file that cannot be written, or a compression that cannot be drawn.
        """
        if show is None:
            if token is not None:
                raise InputError(f"--token {token} is what --show outlines: add --show groups.png, or leave it out")
            return None
        path = Path(show)
        if path.suffix.lower() not in FORMATS:
            raise InputError(f"--show {show}: name a file that ends in {', '.join(FORMATS)}")
        check_writable(path, file=True)
        if config.is_dense:
            raise InputError("--show has nothing to draw with compression dense: name one that merges")
        if len(config.ratios) > 1:
            raise InputError(f"--show with ratio={list(config.ratios)}: tokens are in several groups: give one ratio")
        return cls(path, token, config)

    def opened(
        self, messages: Sequence[Mapping[str, Any]], processor: Any, sampling: VideoSampling
    ) -> list[dict[str, Any]]:
        """The messages with every file read, so that it is read only once; the pictures are kept in `seen`."""
        self.temporal_patch = processor.video_processor.temporal_patch_size
        return [
            {**message, "content": [self._opened(item, sampling) for item in message["content"]]}
            for message in messages
        ]

    def _opened(self, item: dict[str, Any], sampling: VideoSampling) -> dict[str, Any]:
        kind = item["type"]
        if kind == "image":
            image = load_image(item[kind])
            self.seen.append([image])
            return {**item, kind: image}
        if kind == "video":
            video = load_video(item[kind], sampling, self.temporal_patch)
            self.seen.append(self._steps(video))
            return {**item, kind: video}
        return item

    def _steps(self, video: Video) -> list[Image.Image]:
        """The first frame of each temporal step."""
        frames = video.frames[:: self.temporal_patch].permute(0, 2, 3, 1)
        return [Image.fromarray(frame.numpy()) for frame in frames]

    def check_token(self, inputs: Mapping[str, Any], processor: Any) -> None:
        """Raise InputError if the token cannot exist: the number of kept tokens, or its upper bound, follows from the
        grids."""
        merge, given = processor.image_processor.merge_size, {}
        for kind in ("image", "video"):
            if (grid := inputs.get(f"{kind}_grid_thw")) is not None:
                given[kind] = sum(self.config.tokens_kept(grid, merge, video=kind == "video"))
        kept = sum(given.values())
        if self.token is not None and not 0 <= self.token < kept:
            raise InputError(f"--token {self.token} does not exist: {kept} tokens are kept, 0 to {kept - 1}")

    def write(self, visuals: Sequence[Visual]) -> Path:
        """Draw all images and videos, one below the other, and write the file atomically.

        Raises:
            InputError: no step has merged anything, or the token does not exist, though check_token() passed: the
                method has late counts.
        """
        first, sheets = 0, []
        if not all(visual.stages for visual in visuals):
            raise InputError("--show has nothing to draw: every step left all tokens alone; leave out --show")
        total = sum(len(visual.stages[-1].representatives) for visual in visuals)
        if self.token is not None and self.token >= total:
            raise InputError(f"--token {self.token} does not exist: {total} tokens are kept, 0 to {total - 1}")
        for visual, pictures in zip(visuals, self.seen, strict=True):
            kept = len(visual.stages[-1].representatives)
            own = None if self.token is None or not first <= self.token < first + kept else self.token - first
            sheets.append(draw_visual(pictures, visual, own))
            first += kept
        sheet = Image.new("RGB", (max(part.width for part in sheets), sum(part.height for part in sheets)), "white")
        top = 0
        for part in sheets:
            sheet.paste(part, (0, top))
            top += part.height
        data = io.BytesIO()
        sheet.save(data, FORMATS[self.path.suffix.lower()])
        return write_bytes(self.path, data.getvalue())
