"""Measures the demo's costs: after all scores are computed, the fine-tuned models of the first seed answer the same
pictures alternately, in one process, because workers that run side by side slow each other down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppe_npu.backends import device as devices
from ppe_npu.demo.recipe import EVAL
from ppe_npu.demo.running import Job, stamp
from ppe_npu.utils.reading import json_or_none

if TYPE_CHECKING:
    from ppe_npu.demo.smaller import Control


def measure(jobs: Sequence[Job], controls: Sequence[Control], data: Path, rounds: int) -> None:
    """Write the cost pass beside the results of the first job, where the report looks for it, unless it already exists
    for the same models.

    Args:
        jobs: those of one seed, dense first; their models must exist. controls: those of the same seed.
        data: the test split.
    """
    from ppe_npu.checkpoints.loading import load_model, load_processor
    from ppe_npu.evaluation import benchmarks, cost_pass, protocols
    from ppe_npu.evaluation.answers import ModelAnswers
    from ppe_npu.evaluation.interleaving import PROMPTS
    from ppe_npu.models import compress

    named = {**{job.method.name: job for job in jobs}, **{control.name: control.job for control in controls}}
    models = {name: stamp(job.folder / "final" / "model.safetensors") for name, job in named.items()}
    file = jobs[0].folder / cost_pass.FILE
    before = json_or_none(file)
    if isinstance(before, dict) and before.get("models") == models:
        return
    candidates = []
    for job in jobs:
        final = job.folder / "final"
        model = compress(load_model(final, devices.resolve(job.device)), job.method.config)
        answers = ModelAnswers(model, load_processor(final), EVAL.max_new_tokens)
        candidates.append(cost_pass.Candidate(job.method.name, answers))
    candidates += [cost_pass.Candidate(control.name, control.answers()) for control in controls]
    samples = cost_pass.spread_samples(benchmarks.load("layout", data), PROMPTS)
    found = cost_pass.measure(candidates, samples, rounds)
    cost_pass.write(jobs[0].folder, {**found, "models": models}, protocols.CHECKPOINT)
