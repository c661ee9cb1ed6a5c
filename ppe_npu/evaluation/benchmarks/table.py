"""What docs/benchmarks-data.md says of each benchmark; run as a module it writes the page."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ppe_npu.evaluation.benchmarks.dataset import Dataset
from ppe_npu.evaluation.benchmarks.registry import OURS
from ppe_npu.files import write_text

PAGE = Path(__file__).resolve().parents[3] / "docs" / "benchmarks-data.md"
_MARK = "<!-- from here on: python -m ppe_npu.evaluation.benchmarks.table -->\n"


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
    """One section a benchmark: what it is, its files, where to get them, its metric, its prompt."""
    parts = [_MARK]
    for name, benchmark in published().items():
        files = " ".join(f"`{benchmark.folder}/{need}`" for need in benchmark.needs)
        doc = " ".join((benchmark.__doc__ or "").split())
        source = (import_module(benchmark.__module__).__doc__ or "").strip().splitlines()[0]
        score = (
            f"{benchmark.metric}; reports call `{benchmark.headline}` the score"
            if benchmark.headline
            else benchmark.metric
        )
        parts.append(
            f"## {name}\n\n{source} {doc}\n\n* files: {files}\n* from: {benchmark.home}\n* metric: {score}\n"
            f"* at most {benchmark.max_new_tokens} new tokens; prompt:\n\n```\n{benchmark.form}\n```\n"
        )
    return "\n".join(parts)


def write_page(path: Path = PAGE) -> Path:
    """Put the sections behind what is written by hand."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return write_text(path, text.partition(_MARK)[0] + markdown())


if __name__ == "__main__":
    print(write_page())
