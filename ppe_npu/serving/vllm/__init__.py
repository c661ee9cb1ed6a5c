"""vLLM with the visual tokens of every image and video merged: a plug-in, by vLLM's own registry.

vLLM calls register() in each of its processes (entry point group vllm.general_plugins); it adds architectures and
changes nothing that is there. A checkpoint asks for one by its config: `ppe-npu export --vllm` writes such a config.

    register()      names the architectures, and imports none of their files
    model.py        what the families share: features merged after the tower, rows put in place for the decoder
    processing.py   how many placeholders an image or a video has, and the key of its caches
    refusals.py     what of vLLM's settings cannot be, by name
    tower.py        the Qwen-VL towers on what a step at the pixels keeps
    qwen2_vl.py qwen2_5_vl.py qwen3_vl.py qwen3_5.py internvl.py   one file a family
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
    """Names of the architectures that vLLM gets: a transformers class' own, after PREFIX."""
    return tuple(_FILES)


def register() -> None:
    """Add them to vLLM's registry; a second call in a process does nothing."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for architecture, file in _FILES.items():
        if architecture not in known:
            ModelRegistry.register_model(architecture, f"{__name__}.{file}:{architecture}")
