"""InternVL's inputs: pictures cut into tiles of one size, and videos whose frames are a tile each.

Its processor joins the tiles of images and videos in the order of the prompt, and does not return their counts. Here
tiles are made for each picture and video separately, so that files are read once and their tiles can be cached, and are
joined when the prompts are known (in_order).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ppe_npu.data.frames import video_of_frames
from ppe_npu.data.pixel_cache import PixelCache, cached
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import Video, load_still, load_video
from ppe_npu.errors import InputError, first_line

_COUNTS = {"image": "num_tiles", "video": "num_frames"}  # keys of the counts per image and per video
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_CUT = {"crop_to_patches": True}  # as the processor's own call does


def is_tiled(processor: Any) -> bool:
    """Whether a processor makes tiles of pictures (InternVL's), rather than grids (Qwen's)."""
    return hasattr(processor, "image_seq_length") and hasattr(processor, "start_image_token_id")


def tile_count(processor: Any, height: int, width: int) -> int:
    """The number of tiles of a picture of this size, its thumbnail included."""
    return int(processor.image_processor.get_number_of_image_patches(height, width, dict(_CUT)))


def process(
    processor: Any, images: Sequence[Any], videos: Sequence[Any], sampling: VideoSampling, cache: PixelCache | None
) -> tuple[dict[str, torch.Tensor], dict[str, list[torch.Tensor]]]:
    """inputs.process_visuals for tiles: tiles and their counts by kind, which in_order() puts in the prompts' order."""
    read = partial(image_tiles, processor)
    made = {
        "image": cached(images, cache, ("image",), lambda todo: read([load_still(image) for image in todo])),
        "video": cached(
            videos,
            cache,
            ("video", sampling),
            lambda todo: [video_tiles(processor, _frames_of(video, sampling)) for video in todo],
        ),
    }
    visuals: dict[str, torch.Tensor] = {}
    for kind, parts in made.items():
        if parts:
            visuals[_PIXELS[kind]] = torch.cat([pixels for pixels, _, _ in parts])
            visuals[_COUNTS[kind]] = torch.stack([count for _, count, _ in parts])
    return visuals, {kind: [ids for _, _, ids in parts] for kind, parts in made.items()}


def _frames_of(video: Any, sampling: VideoSampling) -> Video:
    if isinstance(video, (str, os.PathLike)):
        return load_video(video, sampling, 1)
    return video if isinstance(video, Video) else video_of_frames(video, sampling, 1)


def image_tiles(processor: Any, images: Sequence[Any]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pictures -> for each (tiles float32 [n, 3, H, W], n int64 [], the ids that its placeholder becomes int64 [m])."""
    out = []
    for image in images:
        tiles = processor.image_processor(images=[image], return_tensors="pt", **_CUT)["pixel_values"]
        out.append((tiles, torch.tensor(len(tiles)), tile_ids(processor, len(tiles))))
    return out


def video_tiles(processor: Any, video: Video) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A video -> (frames float32 [T, 3, H, W], T int64 [], the ids that its placeholder becomes int64 [m])."""
    try:
        made = processor.video_processor(videos=[video.frames], do_sample_frames=False, return_tensors="pt")
    except ValueError as error:  # the processor's own rules
        raise InputError(f"video {video.path} cannot be processed ({first_line(error)}): leave it out") from error
    frames = made["pixel_values_videos"][0]
    return frames, torch.tensor(len(frames)), frame_ids(processor, len(frames))


def tile_ids(processor: Any, tiles: int) -> torch.Tensor:
    """int64 [m]: the ids that a picture's placeholder becomes."""
    image = [processor.image_token_id] * (tiles * processor.image_seq_length)
    return torch.tensor([processor.start_image_token_id, *image, processor.end_image_token_id])


def frame_ids(processor: Any, frames: int) -> torch.Tensor:
    """int64 [m]: the ids that a video's placeholder becomes: a line for each frame, as the processor writes it."""
    mark = f"{processor.start_image_token}{processor.image_token}{processor.end_image_token}"
    text = "\n".join(f"Frame{number + 1}: {mark}" for number in range(frames))
    ids = torch.tensor(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids.repeat_interleave(torch.where(ids == processor.image_token_id, processor.image_seq_length, 1))


def in_order(prompts: Sequence[Sequence[int]], kinds: dict[int, str], visuals: dict[str, Any]) -> dict[str, Any]:
    """Tiles in the order of the prompts, as the model takes them.

    Args:
        prompts: token ids before placeholders were expanded. kinds: "image" or "video" by the placeholder's token id.
        visuals: pixels and counts of all images and of all videos, each kind in its own order.

    Returns:
        {"pixel_values": float32 [tiles, 3, H, W], "num_frames": for every image 1, for every video its frames}, or {}
        for prompts without pictures.
    """
    following: dict[str, Iterator[torch.Tensor]] = {
        kind: iter(visuals[_PIXELS[kind]].split(visuals[count].tolist())) if count in visuals else iter(())
        for kind, count in _COUNTS.items()
    }
    order = [kinds[token] for prompt in prompts for token in np.asarray(prompt).tolist() if token in kinds]
    tiles = [(kind, next(following[kind])) for kind in order]
    if not tiles:
        return {}
    frames = [len(part) if kind == "video" else 1 for kind, part in tiles]
    return {"pixel_values": torch.cat([part for _, part in tiles]), "num_frames": frames}
