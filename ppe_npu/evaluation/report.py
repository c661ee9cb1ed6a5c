"""Results of several runs -> a Markdown table and a plot: accuracy per question type beside what it costs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.files import write_text

_COSTS = (
    ("visual tokens", "tokens_after", lambda value: f"{value:.1f}"),
    ("kept", "retention", lambda value: f"{100 * value:.0f} %"),
    ("prefill ms", "prefill_seconds", lambda value: f"{1000 * value:.2f}"),
    ("total ms", "seconds", lambda value: f"{1000 * value:.2f}"),
    ("KV bytes", "kv_bytes", lambda value: f"{value:,.0f}"),
)


def check_plotting() -> None:
    """Raise InputError unless a report can be drawn; to be called before what takes long."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("matplotlib is not installed, which reports are drawn with: pip install matplotlib")


def write_report(results: Sequence[Mapping[str, Any]], path: str | Path, title: str, notes: Sequence[str] = ()) -> Path:
    """Write `path` (Markdown) and, beside it, a plot of the same name (.png).

    Args:
        results: of evaluate(), in the order of the rows. Several with one name (seeds, say) become one row: the mean,
            with the smallest and the largest behind it.
        path: of the Markdown file.
        title: its heading.
        notes: paragraphs under the table.

    Raises:
        InputError: no results.
    """
    if not results:
        raise InputError("there are no results to report: evaluate something first")
    path = Path(path)
    plot = path.with_suffix(".png")
    groups = grouped(results)
    _plot(groups, plot, title)
    parts = [f"# {title}", table(groups), f"![accuracy per question type]({plot.name})", _legend(results), *notes]
    return write_text(path, "\n\n".join(parts) + "\n")


def grouped(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Results by name, in order of first appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["name"], []).append(result)
    return groups


def question_types(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """All types that occur, in order of first appearance."""
    return list(dict.fromkeys(kind for runs in groups.values() for run in runs for kind in run["types"]))


def table(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The Markdown table: one row a name; accuracy per type and over all, then costs per sample."""
    types = question_types(groups)
    head = ["method", *types, "all", *(label for label, _, _ in _COSTS)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, runs in groups.items():
        accuracies = [[run["types"].get(kind, {}).get("accuracy") for run in runs] for kind in types]
        accuracies.append([run["accuracy"]["accuracy"] for run in runs])
        costs = [form(_mean([run["costs"][key] for run in runs])) for _, key, form in _COSTS]
        lines.append([name, *map(_share, accuracies), *costs])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _share(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return "-"
    spread = f" ({min(present):.3f} to {max(present):.3f})" if len(present) > 1 else ""
    return f"{_mean(present):.3f}{spread}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _legend(results: Sequence[Mapping[str, Any]]) -> str:
    """What the numbers are, in words that hold for every benchmark."""
    first = results[0]
    errors = sum(result["errors"] for result in results)
    counts = ", ".join(f"{kind} {entry['count']}" for kind, entry in first["types"].items())
    text = (
        f"Benchmark {first['settings']['benchmark']}; samples per type: {counts}. Accuracy in [0, 1]; bars in the "
        "plot: 95 % Wilson intervals of one run, or smallest to largest of several. Costs are means per sample: "
        "visual tokens that the LLM saw; milliseconds to the first token and in all, a batch's time shared by its "
        f"samples, on {first['versions']['device']}; bytes of the KV cache at the end."
    )
    return text + (f" {errors} samples failed and count as wrong." if errors else "")


def _plot(groups: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, title: str) -> None:
    """Grouped bars: question types along the axis, one colour a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state of pyplot
    from matplotlib.figure import Figure

    types = [*question_types(groups), "all"]
    figure = Figure(figsize=(max(7.0, 1.6 * len(types)), 4.2 + 0.2 * len(groups) / 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(groups)
    for number, (name, runs) in enumerate(groups.items()):
        entries = [[run["types"].get(kind) if kind != "all" else run["accuracy"] for run in runs] for kind in types]
        entries = [[entry for entry in found if entry] for found in entries]
        means = [_mean([entry["accuracy"] for entry in found]) if found else 0.0 for found in entries]
        bounds = [_bounds(found) for found in entries]
        below = [max(mean - low, 0.0) for mean, (low, _) in zip(means, bounds)]
        above = [max(high - mean, 0.0) for mean, (_, high) in zip(means, bounds)]
        at = [place + (number - (len(groups) - 1) / 2) * width for place in range(len(types))]
        kept = _mean([run["costs"]["retention"] for run in runs])
        label = f"{name} ({100 * kept:.0f} % of tokens)"
        axes.bar(at, means, width, yerr=[below, above], label=label, error_kw={"elinewidth": 0.8})
    axes.set_xticks(range(len(types)), types)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("accuracy")
    axes.set_title(title)
    figure.legend(fontsize="small", loc="outside lower center", ncols=3)  # over no bar
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.png")
    figure.savefig(temporary, dpi=130)
    os.replace(temporary, path)


def _bounds(entries: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    if not entries:
        return 0.0, 0.0
    if len(entries) == 1:
        return entries[0]["low"], entries[0]["high"]
    return min(entry["accuracy"] for entry in entries), max(entry["accuracy"] for entry in entries)
