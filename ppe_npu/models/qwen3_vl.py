"""Qwen3-VL in transformers, and its mixture of experts.

Modifications: those of vision_language.py, and
* the vision tower's deepstack features, which the first decoder layers add to the visual tokens that leave them, are
  merged by the groups of the tokens; the decoder always runs stage by stage (decoder.py).

M-RoPE axes are interleaved over the channels. The frames of a video are separate runs, each after a text that tells its
second, and each with its own positions.
"""

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.pixels import PixelValues
from ppe_npu.engine.positions import HALVES, interleaved_channels
from ppe_npu.engine.spans import VisionTokens
from ppe_npu.models import vision_language
from ppe_npu.models.known import turned_channels
from ppe_npu.models.vision_language import decoder_layers as decoder_layers
from ppe_npu.models.vision_language import detach as detach
from ppe_npu.models.vision_language import uninstall as uninstall

CLASSES = ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")
LAYERS = {  # and the attention in them
    "Qwen3VLTextDecoderLayer": "Qwen3VLTextAttention",
    "Qwen3VLMoeTextDecoderLayer": "Qwen3VLMoeTextAttention",
}
TOWER = {  # the same for the vision tower's blocks
    "Qwen3VLVisionBlock": "Qwen3VLVisionAttention",
    "Qwen3VLMoeVisionBlock": "Qwen3VLMoeVisionAttention",
}
PAIRS = HALVES  # which channels of a head are rotated together


def vision_tokens(config) -> VisionTokens:
    return VisionTokens(
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        merge_size=config.vision_config.spatial_merge_size,
        tokens_per_second=None,
        frames_apart=True,
        tower_blocks=config.vision_config.depth,
        taps=tuple(getattr(config.vision_config, "deepstack_visual_indexes", ())),  # Qwen3.5 has none
        pixels=PixelValues(config.vision_config.temporal_patch_size, (0.5,) * 3, (0.5,) * 3),
    )


def channels(config) -> tuple[int, ...]:
    """The axis of each rotary channel of half a head."""
    text = config.text_config
    return interleaved_channels(text.rope_parameters.get("mrope_section", [24, 20, 20]), turned_channels(text))


def install(model, compression: Compression) -> None:
    vision_language.install(model, compression, staged=True)
