"""Qwen3.5 in vLLM.

Modifications: those of model.py, and
* use_fused_qk_norm_rope_gate is turned off in this instance's full attention, because that kernel does its own rotation
  and reads only three rows.

Linear attention uses the order of tokens but no positions. The frames of a video are separated by text, as in Qwen3-VL.
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
