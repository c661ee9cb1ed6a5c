"""What a model makes of a source: its groups and costs, and its answer as it comes. Many users may ask one model."""

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
    """A model that an earlier command left below this folder; None: there is none."""
    return next((folder / name for name in LEFT_BEHIND if os.path.isfile(folder / name / "config.json")), None)


@dataclass(frozen=True)
class Look:
    """A source as a compression left it.

    Attributes:
        groups: of the last stage; of the dense model every token is a group of its own.
        renumbered: whether the prompt was numbered anew, so that no position of it is kept.
        costs: "before" and "after" (visual tokens, the mean over decoder layers), "tower" (those that it was given),
            "prompt" (tokens), "kv" (bytes), "tower_flops", "decoder_flops".
    """

    groups: Groups
    renumbered: bool
    costs: dict[str, float]


class Explorer:
    """A model that is asked by several users, one after the other.

    Args:
        answers: whether what it says is worth showing; of random weights it is not.
        sampling: frames of videos, and how large they are.
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
        """What the model is given; InputError where the source or the question cannot be."""
        return self._fitting(lambda: build_inputs(self.processor, [source.messages(question)], sampling=self.sampling))

    def look(self, inputs: Mapping[str, Any], config: CompressionConfig) -> Look:
        """One prefill, its products counted."""
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
        """Pieces of the answer as they come, then what it cost. Who stops listening ends it with its next piece."""
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
            except BaseException as error:  # it is raised where the answer is read
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
        """What the work returns. Where memory ends it is given back, and InputError says what to do."""
        try:
            return work()
        except Exception as error:
            if not ran_out(error):
                raise
        devices.release_memory(self.model.device)  # by now the error, which holds what was computed, is gone
        raise InputError(
            "this does not fit into memory: take a smaller picture, or start explore with less --max-pixels"
        )


class _GoneError(Exception):
    """Nobody listens any more."""


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
    """Of one image or video the groups of the last stage; None where nothing was merged.

    Raises:
        InputError: several ratios, with which a token is in several groups.
    """
    visuals = trace.visuals()
    if len(visuals) != 1:
        raise InputError(f"{len(visuals)} images and videos: look at one")
    return visuals[0].stages[-1] if visuals[0].stages else None


def _each_alone(grid: tuple[int, int, int]) -> Groups:
    """Every token a group of its own, as in the dense model."""
    own = np.arange(int(np.prod(grid)))
    return Groups(None, own.reshape(grid), own, own[:, None])
