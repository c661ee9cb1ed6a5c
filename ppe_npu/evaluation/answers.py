"""A model as the runner sees it: the settings that decide its answers, the lengths of samples, and batches that are
answered in two steps.

The runner accepts any object with these methods. It calls prepare() in a separate thread while answer() works on the
previous batch.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.generation_defaults import of_model
from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import PixelCache, build_inputs
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.evaluation.decoding import (
    GenerationChoice,
    check_ids,
    first_edition,
    generation_settings,
    ignored,
    notice,
    recorded,
)
from ppe_npu.evaluation.generation import Generated, end_tokens, generate
from ppe_npu.evaluation.identity import processor_identity
from ppe_npu.evaluation.samples import Measure, conversation, measure, sampling_of
from ppe_npu.models.fingerprint import fingerprint
from ppe_npu.models.pvc.inputs import shown_repeatedly
from ppe_npu.utils.memory import ran_out


class ModelAnswers:
    """Answers of a model, compressed or not; decoding is greedy unless `generation` changes it.

    Args:
        model: a compressed or plain model, on its device.
        processor: the model's.
        max_new_tokens: tokens per answer, at most.
        sampling: which frames of a video are taken if the sample has no rule of its own.
        seed: the random seed, set before every batch, so that no answer depends on which process gave it, or when.
        generation: as in ppe_npu.evaluation.decoding.generation_settings; None: greedy answers, whatever the
            checkpoint says.

    Raises:
        InputError: an impossible generation setting.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        max_new_tokens: int,
        sampling: VideoSampling | None = None,
        seed: int = 0,
        generation: GenerationChoice = None,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        self._own = of_model(model)
        self.generation = generation_settings(generation, self._own)
        check_ids(self.generation, model.get_input_embeddings().weight.shape[0])
        self.max_new_tokens, self.sampling, self.seed = max_new_tokens, sampling, seed
        compression = getattr(model, "compression", None)
        self.config = CompressionConfig.preset("dense") if compression is None else compression.config
        self._cache = PixelCache()

    def settings(self) -> dict[str, Any]:
        """All settings of the model that decide its answers."""
        asked = answer_settings(
            self.processor,
            self.config,
            str(getattr(self.model.config, "_name_or_path", "")),
            str(self.model.dtype).removeprefix("torch."),
            self.max_new_tokens,
            self.sampling,
            self.seed,
            self.generation,
        )
        return {**asked, "end_tokens": self._end_tokens(), "weights": fingerprint(self.model)}

    def unsaid(self) -> dict[str, Any]:
        """The part of settings() that the first edition used without recording it, with the values it used."""
        return {"generation": first_edition(self._own), "end_tokens": self._end_tokens()}

    def _end_tokens(self) -> list[int]:
        return end_tokens(self.model, self.processor.tokenizer)

    def ignored(self) -> dict[str, Any]:
        """The checkpoint's own generation settings that are not used."""
        return ignored(self._own, self.generation)

    def versions(self) -> dict[str, str]:
        """Versions of the software that gave the answers, and the name of the device."""
        import transformers

        from ppe_npu import __version__

        versions = {"ppe_npu": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
        facts = devices.describe(self.model.device)
        more = {key: facts[key] for key in ("runtime", "driver") if key in facts}
        return {**versions, "python": platform.python_version(), "device": facts["name"], **more}

    def log_ignored(self) -> None:
        """Log which of the checkpoint's settings are not used: once per model, and in the first process only."""
        line = notice(self._own, self.generation) if devices.process_rank() == 0 else None
        if line and getattr(self.model, "said_ignored", None) != line:
            logging.getLogger("ppe_npu").warning(line)
            self.model.said_ignored = line

    def measure(self, sample: Mapping[str, Any]) -> Measure:
        """About how long the sample's prompt will be."""
        showings = self.model.config.pvc["showings"] if hasattr(self.model.config, "pvc") else 1
        return measure(sample, self.processor, self.config, self.sampling, showings)

    @property
    def dtype(self) -> str:
        """Name of the model's dtype, without "torch."."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def family(self) -> str:
        """The model's type, which decides the format of its boxes."""
        return str(getattr(self.model.config, "model_type", ""))

    def seen_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which the model resizes a picture, for families that give boxes in resized pixels."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        maker = self.processor.image_processor
        unit = maker.patch_size * maker.merge_size
        rows, columns = smart_resize(height, width, unit, maker.size["shortest_edge"], maker.size["longest_edge"])
        return columns, rows

    def prepare(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Samples of one bucket -> a left-padded batch on the CPU, made by the same code as training batches."""
        conversations = [conversation(sample) for sample in samples]
        sampling = sampling_of(samples[0], self.sampling)
        inputs = build_inputs(self.processor, conversations, sampling=sampling, cache=self._cache)
        return shown_repeatedly(self.model, inputs) if hasattr(self.model.config, "pvc") else inputs

    def answer(self, inputs: Mapping[str, torch.Tensor]) -> Generated:
        """Answer a batch and measure its cost."""
        devices.seed_everything(self.seed)
        return generate(self.model, self.processor, inputs, self.max_new_tokens, None, self.generation)

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether the error is a lack of memory, so that a smaller batch might succeed."""
        return ran_out(error)

    def release_memory(self) -> None:
        """Free the memory that the device's allocator holds in reserve."""
        devices.release_memory(self.model.device)


def answer_settings(
    processor: Any,
    config: CompressionConfig,
    model: str,
    dtype: str,
    max_new_tokens: int,
    sampling: VideoSampling | None,
    seed: int,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """ModelAnswers.settings() without the weights and the end tokens; it is known before the weights are read."""
    return {
        **processor_identity(processor),
        "model": model,
        "compression": config.to_dict(),
        "dtype": dtype,
        "max_new_tokens": max_new_tokens,
        "video": _frames(sampling or VideoSampling()),
        "seed": seed,
        "generation": recorded(generation or {}),
    }


def _frames(sampling: VideoSampling) -> dict[str, Any]:
    """The fields of a VideoSampling; total_pixels only if it is set, because the first edition had no such field."""
    return {key: value for key, value in asdict(sampling).items() if key != "total_pixels" or value is not None}
