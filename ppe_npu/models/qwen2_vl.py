"""Qwen2-VL in transformers.

Modifications: only those of vision_language.py. M-RoPE sections are contiguous; a video's time counts frames.
"""

from ppe_npu.engine.pixels import CLIP_MEAN, CLIP_STD, PixelValues
from ppe_npu.engine.positions import HALVES, contiguous_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.models.numbering import has_text_behind_time
from ppe_npu.models.vision_language import decoder_layers as decoder_layers
from ppe_npu.models.vision_language import detach as detach
from ppe_npu.models.vision_language import install as install
from ppe_npu.models.vision_language import uninstall as uninstall

CLASSES = ("Qwen2VLForConditionalGeneration",)
LAYERS = {"Qwen2VLDecoderLayer": "Qwen2VLAttention"}  # and the attention in them
PAIRS = HALVES  # which channels of a head are rotated together
TOWER = {"Qwen2VLVisionBlock": "VisionAttention"}  # the same for the vision tower's blocks


def vision_tokens(config) -> VisionTokens:
    return VisionTokens(
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        merge_size=config.vision_config.spatial_merge_size,
        tokens_per_second=None,
        tower_blocks=config.vision_config.depth,
        pixels=PixelValues(config.vision_config.temporal_patch_size, CLIP_MEAN, CLIP_STD),
        text_behind_time=has_text_behind_time("Qwen2VLModel"),
    )


def channels(config) -> tuple[int, ...]:
    """The axis of each rotary channel of half a head."""
    return contiguous_channels(config.text_config.rope_parameters["mrope_section"])
