"""What a compression did: tokens before and after, by span; retention; time."""

import time
from dataclasses import dataclass

import torch

from ppe_npu.config import CompressionConfig
from ppe_npu.spans import PromptLayout


class Stopwatch:
    """Milliseconds between construction and stop(), measured where the work runs and read without making it wait."""

    def __init__(self, device: torch.device):
        self._device = device
        self._marks = [self._mark()]

    def stop(self) -> "Stopwatch":
        self._marks.append(self._mark())
        return self

    @property
    def milliseconds(self) -> float:
        start, end = self._marks
        if self._device.type == "cpu":
            return (end - start) * 1e3
        end.synchronize()
        return start.elapsed_time(end)

    def _mark(self):
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class SpanReport:
    """One image or video: its sample, its grid (frames, height, width) in tokens, tokens before and after."""

    sample: int
    modality: str
    grid: tuple[int, int, int]
    before: int
    after: int


@dataclass(frozen=True)
class CompressionReport:
    """The last prompt (batch) that was compressed.

    Args:
        spans: every image and video.
        prompt_tokens_before, prompt_tokens_after: of the whole batch without padding, text included.
        decoder_layers: of the model; merged before the LLM, all see the same tokens.
        watch: time spent on grouping, merging and assembling.
    """

    spans: tuple[SpanReport, ...]
    prompt_tokens_before: int
    prompt_tokens_after: int
    decoder_layers: int
    watch: Stopwatch

    @classmethod
    def of(
        cls, layout: PromptLayout, config: CompressionConfig, decoder_layers: int, watch: Stopwatch
    ) -> "CompressionReport":
        spans = tuple(
            SpanReport(s.sample, s.modality, s.grid, s.tokens, s.grid[0] * config.budget(s.frame_tokens))
            for s in layout.spans
        )
        before = int(layout.real.sum())
        after = before - sum(span.before - span.after for span in spans)
        return cls(spans, before, after, decoder_layers, watch.stop())

    @property
    def tokens_before(self) -> int:
        """Visual tokens of the batch before compression."""
        return sum(span.before for span in self.spans)

    @property
    def tokens_after(self) -> int:
        """Visual tokens of the batch that every decoder layer sees."""
        return sum(span.after for span in self.spans)

    @property
    def layers(self) -> tuple[int, ...]:
        """Visual tokens of the batch that each decoder layer sees."""
        return (self.tokens_after,) * self.decoder_layers

    @property
    def retention(self) -> float:
        """Visual tokens kept / visual tokens, averaged over decoder layers."""
        return sum(self.layers) / (len(self.layers) * self.tokens_before) if self.spans else 1.0

    @property
    def milliseconds(self) -> float:
        return self.watch.milliseconds

    def to_dict(self) -> dict:
        return {
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "layers": list(self.layers),
            "retention": self.retention,
            "prompt_tokens_before": self.prompt_tokens_before,
            "prompt_tokens_after": self.prompt_tokens_after,
            "milliseconds": self.milliseconds,
            "spans": [vars(span) | {"grid": list(span.grid)} for span in self.spans],
        }

    def __str__(self) -> str:
        return (
            f"{self.tokens_before} visual tokens -> {self.tokens_after} ({self.retention:.1%} kept), prompt "
            f"{self.prompt_tokens_before} -> {self.prompt_tokens_after}, in {self.milliseconds:.1f} ms"
        )
