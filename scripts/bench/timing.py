"""Clocks: several things take turns, round after round, so that a disturbance of the machine meets all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ppe_npu.backends import device as devices

CYCLES = 2_500_000  # of a GPU's clock in a millisecond, at least
MOST_QUEUED = 20  # calls that a GPU is given at a time: it takes about a thousand launches ahead
BETWEEN = 0.1  # milliseconds that two calls take the host beside: three launches
STRETCH = 0.005  # seconds that the clock runs for at least: one call of a small kernel ends before a clock is read
MOST_REPEATS = 100


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call, of every round: by the clock, and on the device itself where that can be told."""

    rounds: tuple[float, ...]
    on_device: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratio(self, other: "Times") -> float:
        """How many times as fast as the other, the median over the rounds."""
        return statistics.median(theirs / mine for mine, theirs in zip(self.rounds, other.rounds))

    def to_dict(self) -> dict[str, float]:
        times = {"ms": self.median, "fastest_ms": min(self.rounds), "slowest_ms": max(self.rounds)}
        return times | ({"device_ms": statistics.median(self.on_device)} if self.on_device else {})


def clock(device: torch.device) -> Callable[[], float]:
    """Of one thread of a CPU the time that it computed, which other people's jobs disturb less; else the wall's."""
    return time.process_time if devices.on_cpu(device) and torch.get_num_threads() == 1 else time.perf_counter


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


def thread_ms(function: Callable[[], object]) -> float:
    """Milliseconds of one call that this thread of a CPU computed."""
    start = time.thread_time()
    function()
    return (time.thread_time() - start) * 1e3


def on_device(function: Callable[[], object], device: torch.device, milliseconds: float) -> float | None:
    """Milliseconds of one call by CUDA's events; None elsewhere. A call takes `milliseconds` by the wall.

    The GPU waits first, so that the calls are queued when it begins: what the host takes for launches does not count,
    unless the calls themselves wait for the device. Before each its cache is filled with something else: a layer's
    inputs come from memory, which the limit is counted by.
    """
    if not devices.times_itself(device):
        return None
    repeats = min(MOST_QUEUED, max(1, math.ceil(STRETCH * 1e3 / max(milliseconds, 1e-6))))
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    with devices.current(device):
        other = torch.empty(2 * cache, dtype=torch.uint8, device=device)
        torch.cuda._sleep(math.ceil((milliseconds + BETWEEN) * repeats * CYCLES))
        for start, end in marks:
            other.zero_()
            start.record()
            function()
            end.record()
    devices.synchronize(device)
    return sum(start.elapsed_time(end) for start, end in marks) / repeats


def interleaved(functions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, Times]:
    """Time every function in every round, after two calls of each that warm it up (kernels are compiled and chosen in
    the first, and the second says how often a clock's stretch has to repeat it)."""
    repeats = {}
    for name, function in functions.items():
        function()
        once = stopwatch(function, device)
        repeats[name] = min(MOST_REPEATS, max(1, math.ceil(STRETCH * 1e3 / max(once, 1e-6))))
    times, inside = ({name: [] for name in functions} for _ in range(2))
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(stopwatch(function, device, repeats[name]))
            inside[name].append(on_device(function, device, times[name][-1]))
    return {name: Times(tuple(times[name]), tuple(ms for ms in inside[name] if ms is not None)) for name in functions}
