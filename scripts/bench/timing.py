"""Clocks: several things take turns, round after round, so that a disturbance of the machine meets all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ppe_npu.backends import device as devices

STRETCH = 0.005  # seconds that the clock runs for at least: one call of a small kernel ends before a clock is read
MOST_REPEATS = 100


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call, of every round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratio(self, other: "Times") -> float:
        """How many times as fast as the other, the median over the rounds."""
        return statistics.median(theirs / mine for mine, theirs in zip(self.rounds, other.rounds))

    def to_dict(self) -> dict[str, float]:
        return {"ms": self.median, "fastest_ms": min(self.rounds), "slowest_ms": max(self.rounds)}


def clock(device: torch.device) -> Callable[[], float]:
    """Of one thread of a CPU the time that it computed, which other people's jobs disturb less; else the wall's."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def clock_name(device: torch.device) -> str:
    return "CPU time" if clock(device) is time.process_time else "wall time"


def stopwatch(function: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Milliseconds of one call, out of so many."""
    devices.synchronize(device)
    now = clock(device)
    start = now()
    for _ in range(repeats):
        function()
    devices.synchronize(device)
    return (now() - start) * 1e3 / repeats


def interleaved(functions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, Times]:
    """Time every function in every round, after two calls of each that warm it up (kernels are compiled and chosen in
    the first, and the second says how often a clock's stretch has to repeat it)."""
    repeats = {}
    for name, function in functions.items():
        function()
        once = stopwatch(function, device)
        repeats[name] = min(MOST_REPEATS, max(1, math.ceil(STRETCH * 1e3 / max(once, 1e-6))))
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(stopwatch(function, device, repeats[name]))
    return {name: Times(tuple(values)) for name, values in times.items()}
