"""Timing. Contenders are measured alternately in each round, so that disturbances of the machine affect all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ppe_npu.backends import device as devices

MOST_QUEUED = 20  # calls that are queued on a GPU at a time: its queue holds about a thousand launches
BETWEEN = 0.1  # milliseconds of the host between two calls, for three more launches
STRETCH = 0.005  # least seconds of a measurement: a single call of a small kernel is shorter than reading a clock
MOST_REPEATS = 100


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call in every round: by the clock and, if it can be measured, on the device itself."""

    rounds: tuple[float, ...]
    on_device: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratio(self, other: "Times") -> float:
        """The speedup over the other, as a median over the rounds."""
        return statistics.median(theirs / mine for mine, theirs in zip(self.rounds, other.rounds))

    def to_dict(self) -> dict[str, float]:
        times = {"ms": self.median, "fastest_ms": min(self.rounds), "slowest_ms": max(self.rounds)}
        return times | ({"device_ms": statistics.median(self.on_device)} if self.on_device else {})


def clock(device: torch.device) -> Callable[[], float]:
    """The clock for a device: CPU time on one thread of a CPU, because other jobs disturb it less; else wall time."""
    return time.process_time if devices.on_cpu(device) and torch.get_num_threads() == 1 else time.perf_counter


def clock_name(device: torch.device) -> str:
    return "CPU time" if clock(device) is time.process_time else "wall time"


def stopwatch(function: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Milliseconds of one call, averaged over `repeats` calls."""
    devices.synchronize(device)
    now = clock(device)
    start = now()
    for _ in range(repeats):
        function()
    devices.synchronize(device)
    return (now() - start) * 1e3 / repeats


def thread_ms(function: Callable[[], object]) -> float:
    """Milliseconds of this thread's CPU time for one call."""
    start = time.thread_time()
    function()
    return (time.thread_time() - start) * 1e3


def on_device(function: Callable[[], object], device: torch.device, milliseconds: float) -> float | None:
    """Milliseconds of one call by the device's own events; None unless it `times_itself`. milliseconds: the call's wall
    time.

    The GPU is made to wait first, so that all calls are queued when it begins. Then the host's time for launches does
    not count, unless the calls themselves wait for the device. Before each call the cache is filled with other data,
    because a layer's inputs come from memory, and the limit is counted that way.
    """
    if not devices.times_itself(device):
        return None
    repeats = min(MOST_QUEUED, max(1, math.ceil(STRETCH * 1e3 / max(milliseconds, 1e-6))))
    marks = [[torch.Event(device, enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    with devices.current(device):
        other = torch.empty(2 * devices.cache_bytes(device), dtype=torch.uint8, device=device)
        devices.delay(device, (milliseconds + BETWEEN) * repeats)
        for start, end in marks:
            other.zero_()
            start.record()
            function()
            end.record()
    devices.synchronize(device)
    return sum(start.elapsed_time(end) for start, end in marks) / repeats


def interleaved(functions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, Times]:
    """Time every function in every round, after two warm-up calls of each. The first compiles and selects kernels; the
    second determines the number of repeats that a measurement of STRETCH seconds needs."""
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
