"""The classes of transformers that fuse() computes through ppe_npu.backends, by name.

A class that only looks like one of these may compute something else: rotate other channels, subtract a second attention
or normalise before the last projection. So a module of any other class is left as it is, as is one of a known class
whose forward is somebody else's: a subclass's, or one that was put in its place.
"""

from collections.abc import Callable
from typing import Any

from ppe_npu.models.seam import is_untouched

NORM, MLP, VISION, TEXT = "RMS norm", "gated MLP", "attention of a vision tower", "attention of a decoder"
CLASSES = {
    NORM: (
        *("Glm4vMoeRMSNorm", "Glm4vMoeTextRMSNorm", "Glm4vRMSNorm", "InternVLVisionRMSNorm", "LlamaRMSNorm"),
        *("MistralRMSNorm", "PaddleOCRRMSNorm", "Qwen2RMSNorm", "Qwen2VLRMSNorm", "Qwen2_5OmniRMSNorm"),
        *("Qwen2_5_VLRMSNorm", "Qwen3MoeRMSNorm", "Qwen3RMSNorm", "Qwen3VLMoeTextRMSNorm", "Qwen3VLTextRMSNorm"),
    ),
    MLP: (
        *("Glm4VisionMlp", "Glm4vMoeTextMLP", "Glm4vMoeisionMlp", "LlamaMLP", "MistralMLP", "PaddleOCRMLP", "Qwen2MLP"),
        *("Qwen2_5OmniMLP", "Qwen2_5_VLMLP", "Qwen3MLP", "Qwen3MoeMLP", "Qwen3VLMoeTextMLP", "Qwen3VLTextMLP"),
        *("Qwen3_5MLP", "Qwen3_5MoeMLP"),
    ),
    VISION: (
        *("Glm4vMoeVisionAttention", "Glm4vVisionAttention", "Qwen2_5_VLVisionAttention", "Qwen3VLMoeVisionAttention"),
        *("Qwen3VLVisionAttention", "Qwen3_5MoeVisionAttention", "Qwen3_5VisionAttention", "VisionAttention"),
    ),
    # Not GLM's, which rotate neighbouring channels or a part of a head, nor Qwen3.5's, whose output is gated.
    TEXT: (
        *("LlamaAttention", "MistralAttention", "PaddleOCRAttention", "Qwen2Attention", "Qwen2VLAttention"),
        *("Qwen2_5OmniAttention", "Qwen2_5_VLAttention", "Qwen3Attention", "Qwen3MoeAttention"),
        *("Qwen3VLMoeTextAttention", "Qwen3VLTextAttention"),
    ),
}
_PARTS = {name: part for part, names in CLASSES.items() for name in names}
# The settings with which a module computes what the fused operators do.
_FITS: dict[str, Callable[[Any], bool]] = {
    MLP: lambda mlp: type(mlp.act_fn).__name__ in ("SiLUActivation", "SiLU"),
    TEXT: lambda attention: getattr(attention, "sliding_window", None) is None,
}


def fused_part(module) -> str | None:
    """NORM, MLP, VISION or TEXT, if the module computes what a known class does; else None."""
    known: Any = next((base for base in type(module).__mro__ if _is_known(base)), None)
    if known is None or type(module).forward is not known.forward or not is_untouched(module, "forward"):
        return None
    part = _PARTS[known.__name__]
    return part if part not in _FITS or _FITS[part](module) else None


def _is_known(base: Any) -> bool:
    home = base.__module__
    return base.__name__ in _PARTS and home.startswith("transformers.models.") and base.forward.__module__ == home
