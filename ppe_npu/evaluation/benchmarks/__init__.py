"""Benchmarks by name: each a small file that knows where its data lies, what it asks and how an answer is scored."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ppe_npu.errors import InputError

# name -> module:class; imported when asked for.
_REGISTERED = {"layout": "ppe_npu.evaluation.benchmarks.layout:Layout"}


class Benchmark(Protocol):
    """What the runner needs of a benchmark.

    Attributes:
        name: as reports show it.
        modality: "image", "video" or "text".
    """

    name: str
    modality: str

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> dict[str, Any]:
        """One sample: index (unique), prompt, GT, type, and its visual: image (PIL), image_path or video_path."""

    def score(self, answer: str, sample: dict[str, Any]) -> float:
        """How right an answer is, in [0, 1]."""


def names() -> list[str]:
    """The registered names."""
    return sorted(_REGISTERED)


def register(name: str, location: str) -> None:
    """Make a benchmark known: location is "module:class", the class takes the data's path."""
    if name in _REGISTERED and _REGISTERED[name] != location:
        raise InputError(f"a benchmark named {name} is already registered ({_REGISTERED[name]}): choose another name")
    _REGISTERED[name] = location


def load(name: str, data_root: str | Path) -> Benchmark:
    """A registered benchmark over the data at data_root (each says in its file what it expects there).

    Raises:
        InputError: an unknown name, or data that is not there.
    """
    if name not in _REGISTERED:
        raise InputError(f"benchmark {name!r} is unknown: use one of {', '.join(names())}")
    module, _, cls = _REGISTERED[name].partition(":")
    return getattr(import_module(module), cls)(data_root)
