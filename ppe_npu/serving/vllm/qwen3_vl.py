"""Qwen3-VL in vLLM.

Modifications: those of model.py, and
* the features that are added in the first decoder layers (DeepStack) are concatenated to an item's own features and
  merged with the same groups.

The frames of a video are separated by text: each follows its timestamp, and is a run with its own positions.
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
