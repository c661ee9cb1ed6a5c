"""Qwen2.5-VL in transformers.

Modifications: only those of vision_language.py. M-RoPE sections are contiguous; a video's time is in seconds.
"""

from ppe_npu.engine.pixels import CLIP_MEAN, CLIP_STD, PixelValues
from ppe_npu.engine.positions import HALVES, contiguous_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.models.numbering import has_text_behind_time
from ppe_npu.models.vision_language import decoder_layers as decoder_layers
from ppe_npu.models.vision_language import detach as detach
from ppe_npu.models.vision_language import install as install
from ppe_npu.models.vision_language import uninstall as uninstall

CLASSES = ("Qwen2_5_VLForConditionalGeneration", "PVCQwen2_5_VLForConditionalGeneration")
LAYERS = {"Qwen2_5_VLDecoderLayer": "Qwen2_5_VLAttention"}  # and the attention in them
PAIRS = HALVES  # which channels of a head are rotated together
TOWER = {"Qwen2_5_VLVisionBlock": "Qwen2_5_VLVisionAttention"}  # the same for the vision tower's blocks


def vision_tokens(config) -> VisionTokens:
    vision = config.vision_config
    return VisionTokens(
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        merge_size=vision.spatial_merge_size,
        tokens_per_second=vision.tokens_per_second,
        tower_blocks=vision.depth,
        whole_blocks=tuple(vision.fullatt_block_indexes),
        window=vision.window_size // vision.spatial_merge_size // vision.patch_size,
        pixels=PixelValues(vision.temporal_patch_size, CLIP_MEAN, CLIP_STD),
        text_behind_time=has_text_behind_time("Qwen2_5_VLModel"),
    )


def channels(config) -> tuple[int, ...]:
    """The axis of each rotary channel of half a head."""
    return contiguous_channels(config.text_config.rope_parameters["mrope_section"])
