"""Runs a model on a source: its groups, its costs, and its streamed answer. Several users share one model."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ppe_npu.backends import device as devices
from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import build_inputs
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError
from ppe_npu.evaluation.cost_pass import prefill_flops
from ppe_npu.evaluation.generation import Generated, generate
from ppe_npu.explorer.sources import Source
from ppe_npu.inspect.trace import Groups
from ppe_npu.models import compress
from ppe_npu.utils.memory import ran_out

T = TypeVar("T")
# Where `make demo` and `make train` leave a model, the best one first.
LEFT_BEHIND = ("runs/demo/seed0/ppe/final", "runs/demo/seed0/ppe-45/final", "runs/demo/seed0/base/final",
               "runs/train/final")  # fmt: skip


def found_model(folder: Path = Path()) -> Path | None:
    """The best model that an earlier command left below this folder; None if there is none."""
    return next((folder / name for name in LEFT_BEHIND if os.path.isfile(folder / name / "config.json")), None)


@dataclass(frozen=True)
class Look:
    """What a compression made of a source, and its costs.

    Attributes:
        groups: the groups of the last stage; for the dense model each token is its own group.
        renumbered: whether the prompt was renumbered, so that merged tokens keep no positions.
        costs: "before" and "after" (visual tokens; "after" is the mean over decoder layers), "tower" (visual tokens
            that the tower was given), "prompt" (tokens), "kv" (bytes), "tower_flops", "decoder_flops".
    """

    groups: Groups
    renumbered: bool
    costs: dict[str, float]


class Explorer:
    """A model that several users share; it handles one call at a time.

    Args:
        answers: whether its answers are shown; those of random weights are not.
        sampling: the number and the size of a video's frames.
    """

    def __init__(self, model: Any, processor: Any, sampling: VideoSampling, answers: bool, max_new_tokens: int = 64):
        self.model, self.processor, self.sampling, self.answers = model, processor, sampling, answers
        self.max_new_tokens = max_new_tokens
        self.layers: int = model.config.get_text_config().num_hidden_layers
        maker = processor.image_processor
        self.unit: int = maker.patch_size * maker.merge_size
        self.temporal_patch: int = processor.video_processor.temporal_patch_size
        self._lock = threading.Lock()  # compress() patches the instance

    def inputs(self, source: Source, question: str) -> dict[str, Any]:
        """The model's inputs; InputError if the source or the question cannot be used."""
        return self._fitting(lambda: build_inputs(self.processor, [source.messages(question)], sampling=self.sampling))

    def look(self, inputs: Mapping[str, Any], config: CompressionConfig) -> Look:
        """Run one prefill and count its FLOPs."""
        with self._lock:
            compression = compress(self.model, config, self.processor).compression
            compression.keep_groups = not config.is_dense
            flops = self._fitting(lambda: prefill_flops(self.model, inputs))
            report = compression.report
            groups = _each_alone(report.spans[0].grid) if config.is_dense else _last(compression.trace)
        after = sum(report.layers) / len(report.layers)
        costs = {"before": report.tokens_before, "after": after, "tower": report.tokens_in_tower}
        costs |= {"prompt": report.prompt_tokens_after, "kv": report.kv_bytes or 0}
        costs |= {"tower_flops": flops["tower"], "decoder_flops": flops["all"] - flops["tower"]}
        return Look(groups or _each_alone(report.spans[0].grid), config.positions == "renumber", costs)

    def ask(self, inputs: Mapping[str, Any], config: CompressionConfig) -> Iterator[str | Generated]:
        """Yields pieces of the answer as they are generated, then a Generated with its costs. If the caller closes the
        iterator, generation stops at the next piece."""
        told: queue.Queue[Any] = queue.Queue()
        gone = threading.Event()

        def work() -> None:
            try:
                with self._lock:
                    model = compress(self.model, config, self.processor)
                    model.compression.keep_groups = False
                    streamer = _streamer(self.processor.tokenizer, told, gone)
                    told.put(
                        self._fitting(lambda: generate(model, self.processor, inputs, self.max_new_tokens, streamer))
                    )
            except BaseException as error:  # raised again in the thread that reads the answer
                told.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                piece = told.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if isinstance(piece, Generated):
                    return
        finally:
            gone.set()

    def _fitting(self, work: Callable[[], T]) -> T:
        """The result of work(). If memory runs out, release it and raise InputError with a remedy."""
        try:
            return work()
        except Exception as error:
            if not ran_out(error):
                raise
        devices.release_memory(self.model.device)  # after `except`, when the error no longer keeps tensors alive
        raise InputError(
            "this does not fit into memory: choose a smaller picture, or start explore with a smaller --max-pixels"
        )


class _GoneError(Exception):
    """The reader of an answer has closed its iterator."""


def _streamer(tokenizer: Any, told: queue.Queue, gone: threading.Event) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if gone.is_set():
                raise _GoneError
            if text:
                told.put(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _last(trace: Any) -> Groups | None:
    """The last stage's groups of the trace's only image or video; None if nothing was merged.

    Raises:
        InputError: there are several images or videos, or several ratios.
    """
    visuals = trace.visuals()
    if len(visuals) != 1:
        raise InputError(f"{len(visuals)} images and videos cannot be shown at once: give one")
    return visuals[0].stages[-1] if visuals[0].stages else None


def _each_alone(grid: tuple[int, int, int]) -> Groups:
    """Groups of one token each, as in the dense model."""
    own = np.arange(int(np.prod(grid)))
    return Groups(None, own.reshape(grid), own, own[:, None])
