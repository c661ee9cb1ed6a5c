"""Qwen3.5 in vLLM.

Modifications: those of model.py, and
* use_fused_qk_norm_rope_gate of the full attention of this instance is off: that kernel rotates by three rows itself.

Linear attention sees the order of tokens and no positions. The frames of a video stand apart, as Qwen3-VL's do.
"""

from typing import Any

from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration, Qwen3_5ProcessingInfo
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder, Qwen3VLMultiModalProcessor
from vllm.multimodal import MULTIMODAL_REGISTRY

from ppe_npu.serving.vllm.model import CompressedModel
from ppe_npu.serving.vllm.processing import CompressedDummies, CompressedInfo, CompressedProcessor


class Info(CompressedInfo, Qwen3_5ProcessingInfo): ...


class Processor(CompressedProcessor, Qwen3VLMultiModalProcessor): ...


class Dummies(CompressedDummies, Qwen3VLDummyInputsBuilder): ...


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummies)
class PPEQwen3_5ForConditionalGeneration(CompressedModel, Qwen3_5ForConditionalGeneration):
    def _install_rotary(self, text: Any, most: int) -> None:
        super()._install_rotary(text, most)
        for layer in self.language_model.model.layers:
            if hasattr(layer, "self_attn"):
                layer.self_attn.use_fused_qk_norm_rope_gate = False
