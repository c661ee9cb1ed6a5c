"""Qwen2-VL in vLLM.

Modifications: only those of model.py.
"""

from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ppe_npu.serving.vllm.model import CompressedModel
from ppe_npu.serving.vllm.processing import CompressedDummies, CompressedInfo, CompressedProcessor


class Info(CompressedInfo, Qwen2VLProcessingInfo): ...


class Processor(CompressedProcessor, Qwen2VLMultiModalProcessor): ...


class Dummies(CompressedDummies, Qwen2VLDummyInputsBuilder): ...


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummies)
class PPEQwen2VLForConditionalGeneration(CompressedModel, Qwen2VLForConditionalGeneration): ...
