"""The demo's control: the dense model of every seed on pictures that are made smaller, to as many tokens as the methods
keep, before the model sees them. A method is worthwhile only if it gains more than this, which costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppe_npu.backends import device as devices
from ppe_npu.demo.recipe import EVAL
from ppe_npu.demo.running import Job, set_up_process

if TYPE_CHECKING:
    from ppe_npu.evaluation.downsampling import SmallerInput


@dataclass(frozen=True)
class Control:
    """A row of the report: the job of a dense model, the share of the tokens, and the row's name."""

    job: Job
    share: float
    name: str

    def answers(self) -> SmallerInput:
        """The job's fine-tuned model, which answers on smaller pictures."""
        from ppe_npu.checkpoints.loading import load_model, load_processor
        from ppe_npu.evaluation.downsampling import SmallerInput
        from ppe_npu.models import compress

        final = self.job.folder / "final"
        model = compress(load_model(final, devices.resolve(self.job.device)), self.job.method.config)
        return SmallerInput(model, load_processor(final), EVAL.max_new_tokens, share=self.share)


def controls(jobs: Sequence[Job], shares: Sequence[float]) -> list[Control]:
    """A control for each dense model and share; with several shares, their names have the same endings as methods'."""
    dense = [job for job in jobs if job.method.config.is_dense]
    tails = [f" {share:.0%}" if len(shares) > 1 else "" for share in shares]
    return [Control(job, share, f"smaller input{tail}") for job in dense for share, tail in zip(shares, tails)]


def run(control: Control) -> dict[str, Any]:
    """Evaluate a control; returns the runner's results, with method, seed and ratio."""
    from ppe_npu.evaluation import benchmarks
    from ppe_npu.evaluation.runner import Evaluation

    set_up_process(control.job.threads)
    benchmark = benchmarks.load("layout", Path(control.job.output) / "data" / "test.jsonl")
    folder = control.job.folder / f"eval_smaller_{control.share:g}"
    with Evaluation(control.answers(), benchmark, folder, EVAL.batch_size, control.name) as evaluation:
        results = evaluation.run()
    return {**results, "method": "smaller input", "seed": control.job.seed, "ratio": control.share}
