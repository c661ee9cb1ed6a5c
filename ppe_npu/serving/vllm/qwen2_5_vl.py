"""Qwen2.5-VL in vLLM.

Modifications: only those of model.py.
"""

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ppe_npu.serving.vllm.model import CompressedModel
from ppe_npu.serving.vllm.processing import CompressedDummies, CompressedInfo, CompressedProcessor


class Info(CompressedInfo, Qwen2_5_VLProcessingInfo): ...


class Processor(CompressedProcessor, Qwen2_5_VLMultiModalProcessor): ...


class Dummies(CompressedDummies, Qwen2_5_VLDummyInputsBuilder): ...


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummies)
class PPEQwen2_5_VLForConditionalGeneration(CompressedModel, Qwen2_5_VLForConditionalGeneration): ...
