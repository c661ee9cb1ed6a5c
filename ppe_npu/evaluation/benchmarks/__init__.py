"""Benchmarks by name: each is a small file with the location of its data, its prompt and its scoring rule."""

from __future__ import annotations

from ppe_npu.evaluation.benchmarks.protocol import Benchmark, check_sample
from ppe_npu.evaluation.benchmarks.registry import GROUP, load, names, register

__all__ = ["GROUP", "Benchmark", "check_sample", "load", "names", "register"]
