"""What a compression did: tokens before and after, by span; retention; time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppe_npu.backends.device import Stopwatch
from ppe_npu.engine.cache import kv_bytes as kv_bytes  # imported from here, like all that is measured

if TYPE_CHECKING:
    from ppe_npu.engine.plan import PromptPlan
    from ppe_npu.inspect.tower_work import TowerReport


@dataclass(frozen=True)
class SpanReport:
    """One image or video.

    Args:
        sample: the row of the batch. grid: (frames, height, width) in tokens. before: its tokens before compression.
        layers: its tokens in each decoder layer.
        tower: its tokens that the vision tower was given.
    """

    sample: int
    modality: str
    grid: tuple[int, int, int]
    before: int
    layers: tuple[int, ...]
    tower: int

    @property
    def after(self) -> int:
        """Its tokens that are left at the end."""
        return self.layers[-1]

    @property
    def mean(self) -> float:
        """Its tokens, averaged over the decoder layers."""
        return sum(self.layers) / len(self.layers)


@dataclass
class CompressionReport:
    """What a compression did to the last prompt (batch).

    Args:
        spans: every image and video.
        layers: visual tokens of the batch that each decoder layer sees.
        prompt_tokens_before, prompt_tokens_after: tokens of the whole batch, with text and without padding.
        planning: the time that laying out the prompt and uploading the plan took on the host, before the vision tower.
        watch: the time that grouping, merging and assembling took.
        kv_bytes: bytes of the KV cache's keys and values after the prompt (for a static cache, of its full length);
            None without a cache.
        in_tower: the work and time of the vision tower, if a method works inside it; else None.
        looking: the time that it took to get what methods look at in the vision tower's blocks; None if none does.
    """

    spans: tuple[SpanReport, ...]
    layers: tuple[int, ...]
    prompt_tokens_before: int
    prompt_tokens_after: int
    planning: Stopwatch
    watch: Stopwatch
    kv_bytes: int | None = None
    in_tower: TowerReport | None = None
    looking: Stopwatch | None = None

    @classmethod
    def of(
        cls,
        plan: PromptPlan,
        layers: tuple[int, ...],
        decoder_layers: int,
        watch: Stopwatch,
        kv_bytes: int | None = None,
    ) -> CompressionReport:
        """From a plan whose stages after the first begin at the decoder layers `layers`."""
        stages = [sum(first <= layer for first in layers) for layer in range(decoder_layers)]
        spans = _span_reports(plan, stages)
        seen = tuple(plan.stages[stage].after.visual_tokens for stage in stages)
        if plan.in_tower is not None:
            plan.in_tower.beside([plan.stages[stage].after.real.sum(axis=1).tolist() for stage in stages])
        prompt = (int(plan.layout.real.sum()), int(plan.last.real.sum()))
        return cls(spans, seen, *prompt, plan.watch, watch, kv_bytes, plan.in_tower, plan.looking)

    @property
    def tokens_before(self) -> int:
        """Visual tokens of the batch before compression."""
        return sum(span.before for span in self.spans)

    @property
    def tokens_in_tower(self) -> int:
        """Visual tokens of the batch that the vision tower was given."""
        return sum(span.tower for span in self.spans)

    @property
    def tokens_after(self) -> int:
        """Visual tokens of the batch that are left at the end."""
        return sum(span.after for span in self.spans)

    @property
    def retention(self) -> float:
        """Visual tokens kept / visual tokens, averaged over decoder layers."""
        return sum(self.layers) / (len(self.layers) * self.tokens_before) if self.spans else 1.0

    @property
    def milliseconds(self) -> float:
        """The time that compression took: planning on the host, looking into the vision tower and merging on the
        device."""
        parts = (self.planning, self.watch, self.looking)
        return sum(part.milliseconds for part in parts if part is not None)

    def to_dict(self) -> dict:
        return {
            "tokens_before": self.tokens_before,
            "tokens_in_tower": self.tokens_in_tower,
            "tokens_after": self.tokens_after,
            "layers": list(self.layers),
            "retention": self.retention,
            "prompt_tokens_before": self.prompt_tokens_before,
            "prompt_tokens_after": self.prompt_tokens_after,
            "kv_bytes": self.kv_bytes,
            "milliseconds": self.milliseconds,
            **({} if self.in_tower is None else {"tower": self.in_tower.to_dict()}),
            "spans": [
                vars(span) | {"grid": list(span.grid), "layers": list(span.layers), "after": span.after}
                for span in self.spans
            ],
        }

    def __str__(self) -> str:
        spent = "" if math.isnan(self.milliseconds) else f", in {self.milliseconds:.1f} ms"
        return (
            f"{self.tokens_before} visual tokens -> {self.tokens_after} ({self.retention:.1%} kept), prompt "
            f"{self.prompt_tokens_before} -> {self.prompt_tokens_after}{spent}"
        )


def _span_reports(plan: PromptPlan, stages: list[int]) -> tuple[SpanReport, ...]:
    """One report for each image or video, even if text separates a video's frames. stages: the stage of each layer."""
    spans = plan.layout.spans
    kept = [[0] * len(spans) for _ in plan.stages]
    for counts, stage in zip(kept, plan.stages):
        for cell in stage.after.cells:
            counts[cell.span] += cell.tokens
    runs: dict[tuple[str, int], list[int]] = {}
    for number, span in enumerate(spans):
        runs.setdefault((span.modality, span.source), []).append(number)
    reports = []
    for numbers in runs.values():
        first = spans[numbers[0]]
        grid = (sum(spans[number].grid[0] for number in numbers), *first.grid[1:])
        layers = tuple(sum(kept[stage][number] for number in numbers) for stage in stages)
        before = sum(spans[number].tokens for number in numbers)
        tower = before
        if plan.chosen is not None and not plan.chosen.leave:
            own = [spans[number] for number in numbers]
            tower = int(plan.chosen.counts([span.feature for span in own], [span.tokens for span in own]).sum())
        reports.append(SpanReport(first.sample, first.modality, grid, before, layers, tower))
    return tuple(reports)
