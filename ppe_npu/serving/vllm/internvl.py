"""InternVL (checkpoints in transformers' format) in vLLM.

Modifications: those of model.py, and
* SupportsMRoPE makes the runner ask for positions and keep them. The exported config therefore has `mrope_section`
  beside the compression; the decoder's own config does not. The runner's three rows are equal; RowRotary reads K rows.

An image is a sequence of tiles. The frames of a video are separated by text: each follows a text with its number.
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
