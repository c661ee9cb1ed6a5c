"""Refuses, at start, the vLLM settings that do not work with a compressed model, and names each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ppe_npu.engine.compression import Compression
from ppe_npu.errors import InputError
from ppe_npu.serving.settings import AXES, KEY


def check_settings(vllm_config: Any, compression: Compression) -> None:
    """Raise InputError for the first setting that would give wrong results, or fail.

    Args:
        vllm_config: vLLM's VllmConfig.
    """
    for said in _refusals(vllm_config, compression):
        raise InputError(said)


def _refusals(config: Any, compression: Compression) -> Iterator[str]:
    """The error message for each of these settings that is in use."""
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        yield (
            f"--pipeline-parallel-size {parallel.pipeline_parallel_size}: only the first stage would learn the "
            "positions of merged tokens; use --tensor-parallel-size"
        )
    if config.model_config.multimodal_config.is_multimodal_pruning_enabled():
        yield (
            "--video-pruning-rate (or --video-pruning-method) is vLLM's own pruning of videos: leave it out, because "
            "ppe_compression sets what is kept"
        )
    if compression.axes == 1 and not config.model_config.uses_mrope:
        yield f"the config has no {AXES}, without which vLLM keeps no positions of merged tokens: let ppe-npu write it"
    if KEY in (config.model_config.multimodal_config.mm_processor_kwargs or {}):
        yield f"--mm-processor-kwargs with {KEY}: that is for requests; set a server's in --hf-overrides"
    if compression.config.at_pixels is not None and config.model_config.multimodal_config.mm_encoder_tp_mode == "data":
        yield (
            "--mm-encoder-tp-mode data with a step at the pixels: vLLM distributes patches by whole pictures; leave "
            "it out"
        )
    if parallel.use_ubatching:
        yield "--enable-dbo (or --ubatch-size) splits a step, but its rows of positions cannot be split: leave it out"
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        yield "--prefill-context-parallel-size splits a prompt, but its rows of positions cannot be split: leave it out"
    state = getattr(config.model_config.hf_text_config, "mamba_ssm_dtype", None)
    if state is not None and config.cache_config.mamba_ssm_cache_dtype == "auto":
        yield f"this checkpoint's linear attention needs --mamba-ssm-cache-dtype {state}: give it"
    drafter = getattr(config.speculative_config, "method", None)
    if drafter not in (None, "ngram"):
        yield (
            f"speculative decoding by {drafter}: its draft model would read merged features and their rows; use "
            "ngram, or leave it out"
        )
    if getattr(config.lora_config, "enable_tower_connector_lora", False):
        yield (
            "--enable-tower-connector-lora counts only the kept ones of the tower's tokens: leave it out; adapters of "
            "the language model are served"
        )
