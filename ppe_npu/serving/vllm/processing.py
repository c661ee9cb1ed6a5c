"""vLLM's processors with as many placeholders as tokens stay, and with the compression in the keys of its caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.multimodal.processing import PromptUpdateDetails

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.items import ItemRun, item_runs
from ppe_npu.engine.spans import IMAGE, VIDEO
from ppe_npu.errors import InputError
from ppe_npu.models import compression_for
from ppe_npu.serving.rows import LARGEST, thinned_runs
from ppe_npu.serving.settings import KEY, compression_config, identity
from ppe_npu.serving.vllm import PREFIX


def compression_of(hf_config: Any) -> Compression:
    """The compression that a checkpoint's config states.

    Args:
        hf_config: transformers' config, as vLLM has read it.

    Raises:
        InputError: one that does not fit the model.
    """
    name = hf_config.architectures[0].removeprefix(PREFIX)
    return compression_for(name, hf_config, compression_config(getattr(hf_config, KEY, None)))


def runs_of(compression: Compression, kind: str, item: Mapping[str, Any]) -> list[ItemRun]:
    """The runs of an image or a video that the processor is done with.

    Args:
        item: vLLM's fields of it.
    """
    seconds = item.get("second_per_grid_ts") if kind == VIDEO else None
    per_grid = 1.0 if seconds is None or seconds.data is None else float(seconds.data)
    return item_runs(compression, kind, item[f"{kind}_grid_thw"].data.tolist(), per_grid)


class CompressedInfo:
    """Of a stock ProcessingInfo: what the scheduler counts on."""

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """A picture's is that of the largest one. A video's stays: many small frames keep more than few large ones."""
        most = dict(super().get_mm_max_tokens_per_item(seq_len, mm_counts))  # type: ignore[misc]
        config = compression_of(self.get_hf_config()).config  # type: ignore[attr-defined]
        return {**most, IMAGE: config.span_tokens(1, most[IMAGE])}


class CompressedProcessor:
    """Of a stock MultiModalProcessor: its placeholders, thinned to what is kept."""

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        compression = compression_of(self.info.get_hf_config())  # type: ignore[attr-defined]
        vision = compression.vision
        tokens = {IMAGE: vision.image_token_id, VIDEO: vision.video_token_id}

        def thinned(update: Any) -> Any:
            kind, stock = update.modality, update.replacement

            def replacement(index: int) -> Any:
                runs = runs_of(compression, kind, out_mm_kwargs[kind][index])
                most = max(run.extent for run in runs)
                if most > LARGEST:
                    raise InputError(f"{kind} {index} takes {most} positions: at most {LARGEST}; give fewer seconds")
                full = stock(index)
                full = full.full if isinstance(full, PromptUpdateDetails) else full
                thin = thinned_runs(full, tokens[kind], [run.kept for run in runs])
                return PromptUpdateDetails.select_token_id(thin, tokens[kind])

            return dataclasses.replace(update, replacement=replacement)

        return [thinned(update) for update in updates]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """The keys of processed items, of encoded ones and of the KV blocks that they stand in: with the compression,
        so that servers of several may share a store."""
        own = identity(compression_of(self.info.get_hf_config()).config)  # type: ignore[attr-defined]
        found = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return {kind: [f"{key}-{own}" for key in keys] for kind, keys in found.items()}
