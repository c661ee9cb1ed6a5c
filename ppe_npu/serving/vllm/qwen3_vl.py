"""Qwen3-VL in vLLM.

Modifications: those of model.py, and
* the features that enter the first decoder layers (DeepStack) stand beside an item's own, and are merged by its groups.

The frames of a video stand apart, each after a text that says its second: each is a run with positions of its own.
"""

from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ppe_npu.serving.vllm.model import CompressedModel
from ppe_npu.serving.vllm.processing import CompressedDummies, CompressedInfo, CompressedProcessor


class Info(CompressedInfo, Qwen3VLProcessingInfo): ...


class Processor(CompressedProcessor, Qwen3VLMultiModalProcessor): ...


class Dummies(CompressedDummies, Qwen3VLDummyInputsBuilder): ...


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummies)
class PPEQwen3VLForConditionalGeneration(CompressedModel, Qwen3VLForConditionalGeneration):
    @property
    def feature_width(self) -> int:
        return self.visual_dim
