"""In which order records are seen: by the seed and the epoch alone, so that a resumed run goes on where it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

_POOL = (
    50  # steps whose records are sorted by length together: long enough to fill batches, short enough to stay random
)


class EpochSampler(torch.utils.data.Sampler):
    """All records, in another order every epoch.

    accelerate 1.1.1 does not pass the epoch on to its own sampler when it skips the batches that a resumed run has
    seen: the rest of that epoch would come in the first epoch's order.

    Args:
        records: how many.
        seed: of the order.
        epoch: tells the epoch when an order is asked for.
        lengths: of each record, to bring records of like length together; None: they are not.
        per_step: records of one optimizer step, over all processes. With lengths these are alike, so that no process
            waits for another. An epoch's last step is filled up with its first records: every process, and every
            accumulated forward, has its share, however many there are.
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
        # Spread, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order = torch.randperm(self.records, generator=generator).tolist()
        seen = order if self.lengths is None else list(self._grouped(order, generator))
        yield from itertools.islice(itertools.cycle(seen), len(self))

    def _grouped(self, order: list[int], generator: torch.Generator) -> Iterator[int]:
        """Each pool sorted by length and cut into steps, which are shuffled. A rest that fills no step stays last."""
        size = self.per_step * _POOL
        for start in range(0, self.records, size):
            pool = sorted(order[start : start + size], key=lambda number: -self.lengths[number])
            steps = [pool[at : at + self.per_step] for at in range(0, len(pool), self.per_step)]
            rest = [steps.pop()] if len(steps[-1]) < self.per_step else []
            mixed = torch.randperm(len(steps), generator=generator).tolist()
            for step in [*(steps[number] for number in mixed), *rest]:
                yield from step
