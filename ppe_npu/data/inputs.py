"""Messages with pictures and videos -> model inputs. Training, evaluation and `ppe-npu describe` all use this module.

The parts are transformers' own: the checkpoint's chat template, tokenizer, image processor and video processor. They
are called separately (the processor's single call gives the same result), so that processed pixels can be cached for
questions about the same picture, and frames can be decoded by PyAV.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ppe_npu.compat import ensure_mm_token_type_ids, resampling
from ppe_npu.data import tiles
from ppe_npu.data.frames import video_of_frames
from ppe_npu.data.messages import Message, check_conversations, has_surrogates, visual_items, worded
from ppe_npu.data.pictures import load_image
from ppe_npu.data.pixel_cache import PixelCache, cached
from ppe_npu.data.placeholders import (
    check_placeholders,
    expand,
    image_ids,
    pixel_cap,
    sizes_whole_videos,
    video_ids,
    visual_ids,
)
from ppe_npu.data.sampling import DEFAULT_FPS, VideoSampling
from ppe_npu.data.turns import PLACEHOLDERS as PLACEHOLDERS
from ppe_npu.data.turns import split_placeholders
from ppe_npu.data.videos import Video, load_still, load_video
from ppe_npu.errors import InputError, first_line

__all__ = [
    "DEFAULT_FPS",
    "Encoded",
    "InputError",
    "PixelCache",
    "Video",
    "VideoSampling",
    "build_inputs",
    "encode",
    "load_image",
    "load_video",
    "split_placeholders",
    "to_device",
    "visual_items",
]

_PIXELS = ("pixel_values", "pixel_values_videos")


@dataclass
class Encoded:
    """Conversations before padding.

    Attributes:
        ids: the token ids of each conversation, placeholders expanded.
        visuals: pixel_values float32 [P, D], image_grid_thw int64 [I, 3], pixel_values_videos, video_grid_thw,
            second_per_grid_ts float32 [V] (seconds per temporal step, for Qwen2.5-VL only); a key is absent where there
            is no such visual. For InternVL: what tiles.in_order returns.
    """

    ids: list[list[int]]
    visuals: dict[str, torch.Tensor] = field(default_factory=dict)


def build_inputs(
    processor: Any,
    conversations: Sequence[Any],
    add_generation_prompt: bool = True,
    padding_side: str = "left",
    sampling: VideoSampling | None = None,
    cache: PixelCache | None = None,
) -> dict[str, torch.Tensor]:
    """Conversations in transformers' message form -> inputs for model(**inputs) and model.generate(**inputs).

    A message is {"role": ..., "content": text or list of parts}; a part is {"type": "text", "text": ...},
    {"type": "image", "image": what data.pictures.load_image takes, or a VideoFrame} or {"type": "video", "video": path,
    Video, list of frames, or array or tensor [T, 3, H, W]}. data.messages describes the other accepted forms. One
    batch may mix conversations with no, one and many images and videos; a single conversation is a batch of one.

    Returns:
        input_ids, attention_mask, mm_token_type_ids: int64 [B, S]; and for each kind of visual that occurs
        pixel_values float32 [P, D] with image_grid_thw int64 [I, 3], or pixel_values_videos with video_grid_thw int64
        [V, 3] and second_per_grid_ts float32 [V] (Qwen2.5-VL only). For InternVL the visuals are as in tiles.in_order.
        All are on the CPU.

    Raises:
        InputError: messages of another structure, a picture or video that cannot be read, placeholders that do not
            match the visuals, or messages that the checkpoint's chat template refuses.
    """
    encoded = encode(processor, conversations, add_generation_prompt, sampling, cache)
    inputs = pad(encoded.ids, _pad_id(processor.tokenizer), padding_side)
    ensure_mm_token_type_ids(inputs, *visual_ids(processor).values())
    return {**inputs, **encoded.visuals}


def encode(
    processor: Any,
    conversations: Sequence[Any],
    add_generation_prompt: bool,
    sampling: VideoSampling | None = None,
    cache: PixelCache | None = None,
) -> Encoded:
    """Conversations -> token ids (not padded) and processed pixels; arguments and errors as in build_inputs."""
    if not all(hasattr(processor, part) for part in ("apply_chat_template", "tokenizer", "image_processor")):
        given = f"processor is of type {type(processor).__name__}"
        raise InputError(f"{given}: give the checkpoint's, from load_processor(path) or transformers' AutoProcessor")
    if not isinstance(add_generation_prompt, (bool, type(None))):
        raise InputError(f"add_generation_prompt is {worded(add_generation_prompt)}: give True or False")
    checked = check_conversations(conversations)
    texts = [render(processor, messages, add_generation_prompt) for messages in checked]
    ids = processor.tokenizer(texts)["input_ids"]
    items = [visual_items(messages) for messages in checked]
    for number, (tokens, per_kind) in enumerate(zip(ids, items)):
        check_placeholders(processor, tokens, per_kind, f"prompt {number + 1}")
    images = [item for per_kind in items for item in per_kind["image"]]
    videos = [item for per_kind in items for item in per_kind["video"]]
    visuals, written = process_visuals(processor, images, videos, sampling, cache)
    expanded = [row.tolist() for row, _ in expand(processor, ids, written)]
    return Encoded(expanded, arranged(processor, ids, visuals))


def render(processor: Any, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """One checked conversation as text by the checkpoint's chat template, one placeholder token per visual.

    Raises:
        InputError: messages that the template refuses.
    """
    # The template needs only the place of a visual, not the visual itself.
    plain = [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [part if part["type"] == "text" else {"type": part["type"]} for part in message["content"]],
        }
        for message in messages
    ]
    try:
        text = processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # the template is a program of the checkpoint's, and may raise anything
        raise InputError(
            f"the checkpoint's chat template rejects a conversation ({first_line(error)}): give roles, turns and keys "
            "that it accepts"
        ) from error
    if has_surrogates(text):
        raise InputError("a conversation's text is not valid Unicode: remove the lone half of a surrogate pair")
    return text


def process_visuals(
    processor: Any,
    images: Sequence[Any],
    videos: Sequence[Any],
    sampling: VideoSampling | None = None,
    cache: PixelCache | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, list[torch.Tensor]]]:
    """Load and process pictures and videos, each given as in a checked part of a message.

    Returns:
        (pixels and grids, which arranged() turns into Encoded.visuals; {"image", "video"}: the ids that each visual's
        placeholder becomes, as placeholders.expand takes them).
    """
    for name, value, kind in (("sampling", sampling, VideoSampling), ("cache", cache, PixelCache)):
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{name} is {worded(value)}: give a {kind.__name__} of ppe_npu.data.inputs, or None")
    visuals: dict[str, torch.Tensor] = {}
    written: dict[str, list[torch.Tensor]] = {"image": [], "video": []}
    if tiles.is_tiled(processor):
        return tiles.process(processor, images, videos, sampling or VideoSampling(), cache)
    if images:
        done = cached(images, cache, ("image",), lambda todo: _process_images(processor, todo))
        pixels, grids, written["image"] = map(list, zip(*done))
        visuals |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.stack(grids)}
    if videos:
        sampling = sampling or VideoSampling()
        done = cached(
            videos, cache, ("video", sampling), lambda todo: [_process_video(processor, v, sampling) for v in todo]
        )
        pixels, grids, seconds, written["video"] = map(list, zip(*done))
        visuals |= {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.stack(grids)}
        if "second_per_grid_ts" in processor.model_input_names:  # generate() refuses inputs unknown to its model
            visuals["second_per_grid_ts"] = torch.stack(seconds)
    return visuals, written


def arranged(processor: Any, prompts: Sequence[Sequence[int]], visuals: dict[str, Any]) -> dict[str, Any]:
    """The pixels and grids of process_visuals, in the form and order that the model takes.

    Args:
        prompts: token ids before their placeholders were expanded.
    """
    if not tiles.is_tiled(processor):
        return visuals
    return tiles.in_order(prompts, {token: kind for kind, token in visual_ids(processor).items()}, visuals)


def _process_images(processor: Any, images: Sequence[Any]) -> list[tuple[torch.Tensor, ...]]:
    """Pictures -> for each (pixels float32 [P, D], grid int64 [3], the ids that its placeholder becomes int64 [n]);
    the processor takes all of them in one call."""
    loaded = [load_still(image) for image in images]
    for source, image in zip(images, loaded):
        if max(image.size) > 200 * min(image.size):
            name = f"image {source}" if isinstance(source, (str, Path)) else "an image"
            raise InputError(f"{name} of {image.size[0]}x{image.size[1]} pixels is too narrow: crop it below 200:1")
    done = processor.image_processor(images=loaded, return_tensors="pt")
    grids = done["image_grid_thw"]
    patches, merge = grids.prod(-1).tolist(), processor.image_processor.merge_size**2
    return list(zip(done["pixel_values"].split(patches), grids, [image_ids(processor, n // merge) for n in patches]))


def _process_video(processor: Any, video: Any, sampling: VideoSampling) -> tuple[torch.Tensor, ...]:
    """A video -> (pixels float32 [P, D], grid int64 [3], seconds per temporal step float32 [], the ids that its
    placeholder becomes int64 [n])."""
    maker = processor.video_processor
    if isinstance(video, (str, os.PathLike)):
        video = load_video(video, sampling, maker.temporal_patch_size, partial(_resizing, maker, sampling, video))
        options = _video_options(maker, sampling, len(video.frames))
        done = _made(maker, video.frames, video.path, options | {"do_resize": False})
    else:
        video = video if isinstance(video, Video) else video_of_frames(video, sampling, maker.temporal_patch_size)
        done = _made(maker, video.frames, video.path, _video_options(maker, sampling, len(video.frames)))
    seconds = torch.tensor(maker.temporal_patch_size * video.seconds_per_frame)
    grid = done["video_grid_thw"][0]
    step_tokens = int(grid[1:].prod()) // maker.merge_size**2
    return done["pixel_values_videos"], grid, seconds, video_ids(processor, video, step_tokens)


def _video_options(maker: Any, sampling: VideoSampling, frames: int) -> dict[str, Any]:
    """Keyword arguments for a video processor and this number of frames: its own settings, with the bounds of
    `sampling` on a frame's pixels."""
    size = dict(maker.size)
    bounds = sampling.frame_pixels(frames, size["shortest_edge"], size["longest_edge"], sizes_whole_videos(maker))
    size["shortest_edge"], size["longest_edge"] = bounds
    if size["shortest_edge"] > size["longest_edge"]:
        raise InputError(
            f"video min_pixels={size['shortest_edge']} is larger than max_pixels={size['longest_edge']}: give both"
        )
    return {"size": size, "do_sample_frames": False, "return_tensors": "pt", **pixel_cap(maker)}


def video_grid(maker: Any, sampling: VideoSampling, frames: int, height: int, width: int, path: Any = "") -> list[int]:
    """[temporal steps, rows, columns] of patches of a video of `frames` frames of this size; no file is read.

    Args:
        maker: a video processor, called with frames that have a shape but no content.
        path: the video's, for messages.

    Raises:
        InputError: frames that the processor refuses.
    """
    blank = torch.empty((frames, 3, height, width), dtype=torch.uint8, device="meta")
    return _made(maker, blank, path, _video_options(maker, sampling, frames))["video_grid_thw"][0].tolist()


def _made(maker: Any, frames: torch.Tensor, path: Any, options: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """The output of a video processor for frames, uint8 [T, 3, H, W]."""
    try:
        return maker(videos=[frames], **options)
    except ValueError as error:  # the processor's own rules: frames that are too narrow, or too few for one step
        raise InputError(f"video {path} cannot be processed ({first_line(error)}): leave it out") from error


def _resizing(maker: Any, sampling: VideoSampling, path: Any, frames: int, height: int, width: int):
    """A function that resizes one frame [3, H, W] as the processor itself would resize all frames of the video at once.

    The new size may depend on the number of frames, by a rule of the model family.
    """
    from transformers.image_utils import SizeDict
    from transformers.video_processing_utils import BaseVideoProcessor

    sides = [patches * maker.patch_size for patches in video_grid(maker, sampling, frames, height, width, path)[1:]]
    size = SizeDict(height=sides[0], width=sides[1])
    options = {"size": size, **resampling(BaseVideoProcessor.resize, maker.resample)}
    return lambda frame: BaseVideoProcessor.resize(maker, frame[None], **options)[0]


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> dict[str, torch.Tensor]:
    """Token ids of unequal length -> input_ids and attention_mask, int64 [B, S], padded on `side` (left or right)."""
    if side not in ("left", "right"):
        raise InputError(f"padding_side={side!r} must be left or right")
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def to_device(inputs: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
    """Model inputs on a device, pixels in `dtype`; seconds stay fp32, because positions are computed from them.

    Raises:
        InputError: a device that this machine does not have, or a dtype that is not torch's.
    """
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"dtype is {worded(dtype)}: give one of torch's, such as torch.float32")
    try:
        device if isinstance(device, torch.device) else torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device is {worded(device)} ({first_line(error)}): give an existing one, or cpu") from error
    moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    return {key: value.to(dtype) if key in _PIXELS else value for key, value in moved.items()}


def _pad_id(tokenizer: Any) -> int:
    if tokenizer.pad_token_id is None:
        raise InputError("the tokenizer has no padding token: set pad_token in its tokenizer_config.json")
    return tokenizer.pad_token_id
