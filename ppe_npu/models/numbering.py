"""How the untouched model numbers a prompt, asked of transformers itself."""

import inspect

import torch
import transformers

from ppe_npu.engine.compression import Compression

_FRAMES = 64  # so many that a video is longer than it is wide, even at a few positions of time a minute


def has_text_behind_time(name: str, config) -> bool:
    """Whether the text after a video goes on behind its last position in time, too: VisionTokens.text_behind_time.

    Releases of transformers differ (5.2 says yes, 5.22 no), so get_rope_index is asked about a video of one token a
    frame. It needs no weights.

    Args:
        name: the class that has get_rope_index. config: a whole one of that family.
    """
    made = getattr(transformers, name)
    model = made.__new__(made)
    model.__dict__["config"] = config
    video, side = config.video_token_id, config.vision_config.spatial_merge_size
    with torch.device("cpu"):  # whatever device a model is being made on
        ids = torch.tensor([[config.vision_start_token_id, *[video] * _FRAMES, config.vision_end_token_id]])
        asked = {"video_grid_thw": torch.tensor([[_FRAMES, side, side]])}
        if "mm_token_type_ids" in inspect.signature(made.get_rope_index).parameters:
            asked["mm_token_type_ids"] = 2 * (ids == video).int()
        positions, _ = model.get_rope_index(ids, **asked)
    return int(positions[0, 0, -1]) > 2  # text, one row and column, and then the text


def is_numbered_beside_time(compression: Compression, kwargs: dict) -> bool:
    """Whether text goes on behind a video's rows and columns alone, as the untouched model has it: if it is given what
    the untouched model numbers by. Else it goes on behind the time, too, as Qwen2.5-VL was trained.

    Args:
        compression: one that takes no token out of the decoder.
        kwargs: of a forward pass without a cache.
    """
    needed = kwargs.get("input_ids"), kwargs.get("mm_token_type_ids"), kwargs.get("video_grid_thw")
    told = all(value is not None for value in needed) and kwargs.get("position_ids") is None
    return told and not compression.vision.text_behind_time
