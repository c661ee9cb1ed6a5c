"""The order of the records: it depends on seed and epoch alone, so that a resumed run continues where it stopped."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

_POOL = (
    50  # steps that are sorted by length together: enough to find records of similar length, few enough to stay random
)


class EpochSampler(torch.utils.data.Sampler):
    """All records, in a different order every epoch.

    It replaces accelerate's sampler: accelerate 1.1.1 does not pass the epoch on when it skips the batches that a
    resumed run has seen, so the rest of that epoch would come in the first epoch's order.

    Args:
        records: number of records.
        seed: decides the order.
        epoch: returns the epoch; called at the start of every iteration.
        lengths: each record's length, to put records of similar length into one step; None: they are not sorted.
        per_step: records per optimizer step, over all processes. With lengths, those of a step have similar lengths,
            so that no process waits for another. The last step of an epoch is filled up with the epoch's first records,
            so that every process and every accumulated forward gets a full batch.
    """

    def __init__(
        self,
        records: int,
        seed: int,
        epoch: Callable[[], int],
        lengths: Sequence[int] | None = None,
        per_step: int = 1,
    ) -> None:
        self.records, self.seed, self.epoch = records, seed, epoch
        self.lengths, self.per_step = lengths, per_step

    def __len__(self) -> int:
        return -(-self.records // self.per_step) * self.per_step

    def __iter__(self) -> Iterator[int]:
        # The factor keeps epoch 1 of seed 0 apart from epoch 0 of seed 1.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order = torch.randperm(self.records, generator=generator).tolist()
        seen = order if self.lengths is None else list(self._grouped(order, generator))
        yield from itertools.islice(itertools.cycle(seen), len(self))

    def _grouped(self, order: list[int], generator: torch.Generator) -> Iterator[int]:
        """Sort each pool by length, cut it into steps, and shuffle these. An incomplete step stays last."""
        size = self.per_step * _POOL
        for start in range(0, self.records, size):
            pool = sorted(order[start : start + size], key=lambda number: -self.lengths[number])
            steps = [pool[at : at + self.per_step] for at in range(0, len(pool), self.per_step)]
            rest = [steps.pop()] if len(steps[-1]) < self.per_step else []
            mixed = torch.randperm(len(steps), generator=generator).tolist()
            for step in [*(steps[number] for number in mixed), *rest]:
                yield from step
