"""All published benchmarks, and the table of docs/benchmarks-data.md, made from their classes."""

from __future__ import annotations

from importlib import import_module

from ppe_npu.evaluation.benchmarks.dataset import Dataset
from ppe_npu.evaluation.benchmarks.registry import OURS


def published() -> dict[str, type[Dataset]]:
    """Name -> class of every benchmark over published data."""
    found = {}
    for name, location in OURS.items():
        module, _, cls = location.partition(":")
        benchmark = getattr(import_module(f"{__package__}.{module}"), cls)
        if issubclass(benchmark, Dataset):
            found[name] = benchmark
    return found


def markdown() -> str:
    """A row a benchmark: what it is, its files below the data root, where to get them, its metric and its prompt."""
    head = ("`BENCHMARKS` name", "what", "below `DATA_ROOT`", "where to get it", "metric", "prompt")
    lines = [head, ["---"] * len(head)]
    for name, benchmark in published().items():
        what = (import_module(benchmark.__module__).__doc__ or "").partition("\n\n")[0]
        files = ", ".join(f"`{benchmark.folder}/{need}`" for need in benchmark.needs)
        metric = benchmark.metric + (f"; `{benchmark.headline}` is the score" if benchmark.headline else "")
        prompt = "<br>".join(f"`{line}`" for line in benchmark.form.split("\n") if line)
        lines.append([f"`{name}`", " ".join(what.split()), files, benchmark.home, metric, prompt])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
