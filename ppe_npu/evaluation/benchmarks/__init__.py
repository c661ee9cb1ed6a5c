"""Benchmarks by name: each a small file that knows where its data lies, what it asks and how an answer is scored."""

from __future__ import annotations

from ppe_npu.evaluation.benchmarks.protocol import Benchmark, check_sample
from ppe_npu.evaluation.benchmarks.registry import GROUP, load, names, register

__all__ = ["GROUP", "Benchmark", "check_sample", "load", "names", "register"]
