"""What of vLLM's settings a compressed model cannot take, refused at start by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ppe_npu.errors import InputError


def check_settings(vllm_config: Any) -> None:
    """Raise InputError for the first setting that would give wrong numbers, or none at all.

    Args:
        vllm_config: vLLM's VllmConfig.
    """
    for said in _refusals(vllm_config):
        raise InputError(said)


def _refusals(config: Any) -> Iterator[str]:
    """What is said of every such setting that is asked for."""
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        yield (
            f"--pipeline-parallel-size {parallel.pipeline_parallel_size}: only the first stage would learn the "
            "positions of merged tokens; use --tensor-parallel-size"
        )
    if config.model_config.multimodal_config.is_multimodal_pruning_enabled():
        yield (
            "--video-pruning-rate (or --video-pruning-method) is vLLM's own pruning of videos: leave it out, "
            "ppe_compression says what is kept"
        )
    if parallel.use_ubatching:
        yield "--enable-dbo (or --ubatch-size) cuts a step in two, and its rows of positions are one: leave it out"
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        yield "--prefill-context-parallel-size cuts a prompt, and its rows of positions are whole: leave it out"
    drafter = getattr(config.speculative_config, "method", None)
    if drafter not in (None, "ngram"):
        yield (
            f"speculative decoding by {drafter}: its draft model would read merged features with their rows; use "
            "ngram, or leave it out"
        )
    if getattr(config.lora_config, "enable_tower_connector_lora", False):
        yield (
            "--enable-tower-connector-lora counts the tower's tokens by those that stay: leave it out; adapters of "
            "the language model are served"
        )
