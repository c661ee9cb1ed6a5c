"""Lists all published benchmarks, and makes the sections of docs/benchmarks-data.md from their classes."""

from __future__ import annotations

import textwrap
from importlib import import_module

from ppe_npu.evaluation.benchmarks.dataset import Dataset
from ppe_npu.evaluation.benchmarks.registry import OURS

WIDTH = 140  # characters of a line


def published() -> dict[str, type[Dataset]]:
    """{name: class} of every benchmark over published data."""
    found = {}
    for name, location in OURS.items():
        module, _, cls = location.partition(":")
        benchmark = getattr(import_module(f"{__package__}.{module}"), cls)
        if issubclass(benchmark, Dataset):
            found[name] = benchmark
    return found


def markdown() -> str:
    """A section per benchmark: a description, its files, where to get them, its metric and its prompt."""
    return "\n".join(_section(name, benchmark) for name, benchmark in published().items())


def _section(name: str, benchmark: type[Dataset]) -> str:
    what = (import_module(benchmark.__module__).__doc__ or "").partition("\n\n")[0]
    files = ", ".join(f"`{benchmark.folder}/{need}`" for need in benchmark.needs)
    metric = benchmark.metric + (f"; `{benchmark.headline}` is the score" if benchmark.headline else "")
    parts = (f"below `DATA_ROOT`: {files}", f"from: {benchmark.home}", f"metric: {metric}", "prompt:")
    lines = [f"### `{name}`", "", _wrapped(what), "", *(_wrapped(part, "* ") for part in parts), ""]
    prompt = [wrapped for line in benchmark.form.split("\n") for wrapped in textwrap.wrap(line, WIDTH) or [""]]
    return "\n".join([*lines, "  ```text", *(f"  {line}".rstrip() for line in prompt), "  ```", ""])


def _wrapped(text: str, start: str = "") -> str:
    rest = " " * len(start)
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(" ".join(text.split()), WIDTH, initial_indent=start, subsequent_indent=rest, **options)
