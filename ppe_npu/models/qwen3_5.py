"""Qwen3.5 in transformers, and its mixture of experts.

Modifications: those of vision_language.py, and
* the decoder always runs stage by stage (decoder.py): three of four layers are linear attention (a convolution and a
  recurrence), which depends on the order of tokens but not on positions. They need a 2D mask of padding, which
  transformers' own decoder would not pass to them when it is given a 4D mask.

Tokens may be merged on entry of any layer: like a KV cache, a linear layer's state covers the tokens that the layer was
given. Methods that look into a layer (FastV and others) need one with full attention. The M-RoPE axes are
interleaved over the rotated quarter of a head's channels. The frames of a video are separate runs, as in Qwen3-VL.
"""

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.positions import HALVES, interleaved_channels
from ppe_npu.models import vision_language
from ppe_npu.models.known import turned_channels
from ppe_npu.models.qwen3_vl import vision_tokens as vision_tokens
from ppe_npu.models.vision_language import decoder_layers as decoder_layers
from ppe_npu.models.vision_language import detach as detach
from ppe_npu.models.vision_language import uninstall as uninstall

CLASSES = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
LAYERS = {"Qwen3_5DecoderLayer": "Qwen3_5Attention", "Qwen3_5MoeDecoderLayer": "Qwen3_5MoeAttention"}
PAIRS = HALVES  # which channels of a head are rotated together
TOWER = {"Qwen3_5VisionBlock": "Qwen3_5VisionAttention", "Qwen3_5MoeVisionBlock": "Qwen3_5MoeVisionAttention"}


def channels(config) -> tuple[int, ...]:
    """The axis of each rotary channel of half a head's rotated part."""
    text = config.text_config
    return interleaved_channels(text.rope_parameters.get("mrope_section", [11, 11, 10]), turned_channels(text))


def install(model, compression: Compression) -> None:
    vision_language.install(model, compression, staged=True)
