"""How long a part of the work takes, measured where it runs and without making it wait."""

import time

import torch

from ppe_npu.backends import device as devices


class Stopwatch:
    """Milliseconds between construction (or start()) and stop(), all such stretches together. NaN where a stretch ran
    inside torch.compile, which has no clock."""

    def __init__(self, device: torch.device):
        self._device = device
        self._marks = []
        self._traced = False
        self.start()

    def start(self) -> None:
        self._note()

    def stop(self) -> None:
        self._note()

    @property
    def milliseconds(self) -> float:
        if self._traced:
            return float("nan")
        stretches = zip(self._marks[::2], self._marks[1::2])
        if self._device.type == "cpu":
            return sum(end - start for start, end in stretches) * 1e3
        self._marks[-1].synchronize()
        return sum(start.elapsed_time(end) for start, end in stretches)

    def _note(self) -> None:
        if torch.compiler.is_compiling():
            self._traced = True
        else:
            self._marks.append(self._mark())

    def _mark(self):
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        with devices.current(self._device):  # of the device above it takes the kind alone
            event.record()
        return event
