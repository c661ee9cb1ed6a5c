"""The clocks of the benchmarks."""

import math
import types

import pytest
import torch
from bench import timing
from bench.timing import Times, interleaved, on_device

from ppe_npu.backends import device as devices


def test_a_cpu_has_no_clock_of_its_own():
    times = interleaved({"nothing": lambda: None}, torch.device("cpu"), rounds=2)["nothing"]
    assert len(times.rounds) == 2
    assert times.on_device == ()
    assert "device_ms" not in times.to_dict()


def test_a_gpu_waits_until_all_calls_are_queued(monkeypatch):
    """Uses stand-ins for torch's: a wait, then each call between two events, after the cache was overwritten."""
    done = []

    class Event:
        def __init__(self, where, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def elapsed_time(self, end):
            assert done[-1] == "synchronized"
            return 5.0

    class Other:
        def zero_(self):
            done.append("flushed")

    sizes, properties = [], types.SimpleNamespace(L2_cache_size=8)
    cuda = {"_sleep": done.append, "get_device_properties": lambda where: properties}
    monkeypatch.setattr(torch, "cuda", types.SimpleNamespace(**cuda))
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: sizes.append(size) or Other())
    monkeypatch.setattr(devices, "current", lambda where: torch.no_grad())
    monkeypatch.setattr(devices, "synchronize", lambda where: done.append("synchronized"))
    found = on_device(lambda: done.append("call"), torch.device("cuda"), milliseconds=2.0)
    wait = math.ceil(3 * (2 + timing.BETWEEN) * devices._CYCLES)
    assert done == [wait, *["flushed", "event", "call", "event"] * 3, "synchronized"]
    assert (sizes, found) == ([16], 5.0)
    assert Times((3.0, 2.0, 4.0), (1.0, 1.5, 0.5)).to_dict()["device_ms"] == pytest.approx(1.0)
