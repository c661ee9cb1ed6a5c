"""A process that takes part in an evaluation with a stand-in for a model, whose answers are instant.

    python stand_in.py FOLDER SAMPLES BATCH_SIZE SLEEP

Loads neither torch nor transformers, so that a test can start and kill many of them. The answer to sample n is n + 1;
SLEEP seconds are spent on a batch.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

from ppe_npu.evaluation.runner import Evaluation


class Counting:
    """Samples that ask for the number after their own; every fifth one is longer."""

    name, modality = "counting", "text"

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, number: int) -> dict:
        prompt = "What comes next? " * (5 if number % 5 == 0 else 1)
        return {"index": number, "prompt": prompt, "GT": str(number + 1), "type": f"digit {number % 10}"}


class Instant:
    """What the runner needs of a model (ppe_npu.evaluation.answers.ModelAnswers)."""

    def __init__(self, sleep: float = 0.0) -> None:
        self.sleep = sleep

    def settings(self) -> dict:
        return {"model": "stand-in", "compression": {"method": "none"}, "weights": "none"}

    def versions(self) -> dict:
        return {"device": "a stand-in"}

    def measure(self, sample: dict) -> SimpleNamespace:
        length = len(sample["prompt"])
        return SimpleNamespace(bucket="text", before=length, after=length, source="")

    def prepare(self, samples: list[dict]) -> list[dict]:
        return samples

    def answer(self, prepared: list[dict]) -> SimpleNamespace:
        time.sleep(self.sleep)
        ones = [1] * len(prepared)
        return SimpleNamespace(
            answers=[str(sample["index"] + 1) for sample in prepared],
            **dict.fromkeys(("tokens_before", "tokens_after", "new_tokens", "prompt_kv_bytes"), ones),
            prefill_seconds=0.0,
            seconds=0.0,
            kv_bytes=0,
            peak_memory=None,
        )

    def out_of_memory(self, error: BaseException) -> bool:
        return False


def main(folder: str, samples: str, batch_size: str, sleep: str) -> None:
    answers, benchmark = Instant(float(sleep)), Counting(int(samples))
    with Evaluation(answers, benchmark, folder, int(batch_size), poll=0.05, bar=False) as evaluation:
        evaluation.run()
    assert not {"torch", "transformers"} & set(sys.modules)


if __name__ == "__main__":
    main(*sys.argv[1:])
