"""InternVL (transformers' form of its checkpoints) in vLLM.

Modifications: those of model.py, and
* the runner asks for positions and keeps them (SupportsMRoPE): its config says `mrope_section` beside the compression,
  which the decoder's own config does not. Its three rows are alike; RowRotary reads K.

An image is its tiles, one after the other. The frames of a video stand apart, each after a text that says its number.
"""

from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ppe_npu.serving.vllm.model import CompressedModel
from ppe_npu.serving.vllm.processing import CompressedDummies, CompressedInfo, CompressedProcessor


class Info(CompressedInfo, InternS1ProcessingInfo): ...


class Processor(CompressedProcessor, InternS1MultiModalProcessor): ...


class Dummies(CompressedDummies, InternS1DummyInputsBuilder): ...


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummies)
class PPEInternVLForConditionalGeneration(CompressedModel, InternS1ForConditionalGeneration, SupportsMRoPE): ...
