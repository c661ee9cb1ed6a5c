"""A plug-in for vLLM that merges the visual tokens of every image and video, added through vLLM's model registry.

vLLM calls register() in each of its processes (entry point group vllm.general_plugins). It adds architectures and
changes none of the existing ones. A checkpoint selects one in its config, which `ppe-npu export --vllm` writes.

    register()      adds the architectures to the registry without importing their files
    model.py        what the families share: merging features after the tower, placing position rows for the decoder
    processing.py   the number of placeholders of an image or a video, and the keys of its caches
    refusals.py     the vLLM settings that are refused
    tower.py        the Qwen-VL towers on the patches that a step at the pixels keeps
    qwen2_vl.py qwen2_5_vl.py qwen3_vl.py qwen3_5.py internvl.py   one file per family
"""

from __future__ import annotations

_FILES = {
    "PPEQwen2VLForConditionalGeneration": "qwen2_vl",
    "PPEQwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "PPEQwen3VLForConditionalGeneration": "qwen3_vl",
    "PPEQwen3_5ForConditionalGeneration": "qwen3_5",
    "PPEInternVLForConditionalGeneration": "internvl",
}
PREFIX = "PPE"


def architectures() -> tuple[str, ...]:
    """Names of the architectures that are added to vLLM: PREFIX and the name of a transformers class."""
    return tuple(_FILES)


def register() -> None:
    """Add the architectures to vLLM's registry; a second call in the same process does nothing."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for architecture, file in _FILES.items():
        if architecture not in known:
            ModelRegistry.register_model(architecture, f"{__name__}.{file}:{architecture}")
