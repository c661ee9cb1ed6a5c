"""How the uncompressed model numbers a prompt, determined by calling transformers itself."""

import functools
import inspect
from types import SimpleNamespace

import torch
import transformers

from ppe_npu.engine.compression import Compression

_FRAMES = 9
_CONFIG = SimpleNamespace(  # of no real model: the numbers in a user's config do not matter here
    image_token_id=1,
    video_token_id=2,
    vision_start_token_id=3,
    vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2),
)


@functools.cache
def has_text_behind_time(name: str) -> bool:
    """Whether the text after a video is numbered after its last temporal position, too: VisionTokens.text_behind_time.

    Releases of transformers differ (5.2: yes, 5.22: no), so get_rope_index is called on a video with one token per
    frame. It needs no weights.

    Args:
        name: the class that has get_rope_index.
    """
    made = getattr(transformers, name)
    model = made.__new__(made)
    model.__dict__["config"] = _CONFIG
    with torch.device("cpu"):  # whatever the default device is
        ids = torch.tensor([[3, *[2] * _FRAMES, 4]])
        asked = {"video_grid_thw": torch.tensor([[_FRAMES, 2, 2]])}
        if "mm_token_type_ids" in inspect.signature(made.get_rope_index).parameters:
            asked["mm_token_type_ids"] = 2 * (ids == 2).int()
        positions, _ = model.get_rope_index(ids, **asked)
    return int(positions[0, 0, -1]) > 2  # 0: text, 1: the only row and column, 2: text


def is_numbered_without_time(compression: Compression, kwargs: dict) -> bool:
    """Whether the uncompressed model, called with these arguments, would number the text after a video by its rows and
    columns only. Otherwise text is numbered after the last temporal position, too, as Qwen2.5-VL was trained.

    Args:
        compression: one that removes no token from the decoder.
        kwargs: those of a forward pass without a cache.
    """
    needed = kwargs.get("input_ids"), kwargs.get("mm_token_type_ids"), kwargs.get("video_grid_thw")
    told = all(value is not None for value in needed) and kwargs.get("position_ids") is None
    return told and not compression.vision.text_behind_time
