"""The report's picture: score against the share of tokens kept, a curve per method, a panel per benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.evaluation.scale import named
from ppe_npu.utils.escape import printable
from ppe_npu.utils.figures import new_figure, save_figure
from ppe_npu.utils.optional import optional

_MARKERS = "osD^vP*Xhd"
_COLUMNS = 4
_LONGEST = 60  # characters of a name
_MOST_TYPES = 12  # question types that fit into a panel of bars


def check_plotting() -> None:
    """Raise InputError unless matplotlib is installed; call this before any long work."""
    optional("matplotlib.figure", "drawing a report", "matplotlib")


def draw(comparison: Mapping[str, Any], path: Path, title: str) -> Path:
    """Write the picture (.png) of a comparison (ppe_npu.evaluation.comparison)."""
    import matplotlib

    # Names come from outside the package: a "$" in one starts no formula, whatever the user's matplotlibrc says.
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        return _draw(comparison, path, title)


def _draw(comparison: Mapping[str, Any], path: Path, title: str) -> Path:
    benchmarks = comparison["benchmarks"]
    methods = list(dict.fromkeys(row["method"] for row in comparison["overview"] if not row["dense"]))
    panels = [lambda axes, item=item: _curves(axes, *item, methods) for item in benchmarks.items()]
    key = _averaged(comparison)
    if len(benchmarks) > 1 and key:
        panels.insert(0, lambda axes: _average(axes, comparison["overview"], methods, key))
    only = next(iter(benchmarks.values()))
    if len(benchmarks) == 1 and not only["headline"] and 1 < len(only["types"]) <= _MOST_TYPES:
        panels.append(lambda axes: _bars(axes, only))
    columns = min(len(panels), _COLUMNS)
    lines = -(-len(panels) // columns)
    figure = new_figure(max(5.0 * columns, 6.5), 4.0 * lines + 0.8, layout="constrained")
    for number, panel in enumerate(panels):
        panel(figure.add_subplot(lines, columns, number + 1))
    figure.suptitle(_text(title, 3 * _LONGEST))
    entries = {}
    for axes in figure.axes:
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(entries.values(), entries, fontsize="small", loc="outside lower center", ncols=4)  # covers no curve
    return save_figure(figure, path, 130)


def _text(value: Any, most: int = _LONGEST) -> str:
    """A name as the picture shows it: one line of at most `most` characters."""
    text = printable(value)
    text = f" {text}" if text.startswith("_") else text  # matplotlib leaves such labels out of a legend
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _colour(number: int) -> str:
    return f"C{number % 10}"


def _curves(axes: Any, name: str, found: Mapping[str, Any], methods: Sequence[str]) -> None:
    """One benchmark: points with their 95 % intervals, joined for each method; dense is a horizontal line."""
    scale, rows = found["scale"]["factor"], found["rows"]
    for number, method in enumerate(methods):
        points = sorted(
            (r for r in rows if r["method"] == method and r["retention"] is not None), key=lambda row: row["retention"]
        )
        if points:
            # Methods with the same budget are shifted sideways so that their error bars do not hide each other.
            at = [100 * row["retention"] + 1.2 * (number - (len(methods) - 1) / 2) for row in points]
            values = [scale * row["score"] for row in points]
            errors = [[scale * side for side in sides] for sides in zip(*map(_errors, points))]
            style = {"color": _colour(number), "marker": _MARKERS[number % len(_MARKERS)]}
            axes.errorbar(at, values, errors, label=_text(method), capsize=2, linewidth=1.2, markersize=5, **style)
    for row in (row for row in rows if row["dense"]):
        axes.axhline(scale * row["score"], color="0.35", linestyle="--", linewidth=1, label="dense")
        if row["low"] is not None:
            axes.axhspan(scale * row["low"], scale * row["high"], color="0.35", alpha=0.1, linewidth=0)
    axes.set_title(f"{_text(name)} ({found['samples']:,} samples)", fontsize="medium")
    axes.set_ylabel(_text(named(found["score"], found["scale"])))
    _kept_axis(axes)


def _errors(row: Mapping[str, Any]) -> tuple[float, float]:
    """(distance below, distance above) that the interval reaches from the score."""
    if row["low"] is None:
        return 0.0, 0.0
    return max(row["score"] - row["low"], 0.0), max(row["high"] - row["score"], 0.0)


def _averaged(comparison: Mapping[str, Any]) -> str | None:
    """The key that the panel of all benchmarks shows: "of_dense" or, if there is no dense run at all, "average"; None
    if no row has a value for it."""
    rows = comparison["overview"]
    key = "average" if not any(row["dense"] for row in rows) else "of_dense"
    return key if any(row[key] is not None for row in rows) else None


def _average(axes: Any, rows: Sequence[Mapping[str, Any]], methods: Sequence[str], key: str) -> None:
    """All benchmarks: `key` of each method against the share of tokens it keeps."""
    for number, method in enumerate(methods):
        points = [row for row in rows if row["method"] == method and None not in (row[key], row["retention"])]
        points.sort(key=lambda row: row["retention"])
        at, values = [100 * row["retention"] for row in points], [100 * row[key] for row in points]
        style = {"color": _colour(number), "marker": _MARKERS[number % len(_MARKERS)]}
        axes.plot(at, values, label=_text(method), linewidth=1.2, markersize=5, **style)
    if key == "of_dense":
        axes.axhline(100, color="0.35", linestyle="--", linewidth=1, label="dense")
    axes.set_title("all benchmarks", fontsize="medium")
    axes.set_ylabel("mean of score / dense, %" if key == "of_dense" else "Avg: mean of scores in %")
    _kept_axis(axes)


def _kept_axis(axes: Any) -> None:
    axes.set_xlim(0, 105)
    axes.set_xlabel("visual tokens kept, mean over layers, %")
    axes.grid(alpha=0.25, linewidth=0.6)


def _bars(axes: Any, found: Mapping[str, Any]) -> None:
    """One benchmark's question types: grouped bars, a colour per method; error bars span the range of several runs."""
    rows, kinds = found["rows"], found["types"]
    width = 0.8 / len(rows)
    curves = list(dict.fromkeys(row["method"] for row in rows if not row["dense"]))
    for number, row in enumerate(rows):
        values, spreads = [100 * row["types"].get(kind, 0.0) for kind in kinds], row["types_spread"]
        style: dict[str, Any] = {"color": "0.35" if row["dense"] else _colour(curves.index(row["method"]))}
        alike = [other["retention"] or 0.0 for other in rows if other["method"] == row["method"]]
        style["alpha"] = 1 - 0.6 * sum(kept > (row["retention"] or 0.0) for kept in alike) / len(
            alike
        )  # the fewer tokens kept, the paler
        if spreads:
            ends = [[100 * end for end in spreads.get(kind, (0.0, 0.0))] for kind in kinds]
            sides = [[v - low for v, (low, _) in zip(values, ends)], [high - v for v, (_, high) in zip(values, ends)]]
            style |= {"yerr": sides, "error_kw": {"elinewidth": 0.8}}
        at = [place + (number - (len(rows) - 1) / 2) * width for place in range(len(kinds))]
        axes.bar(at, values, width, **style)
    axes.set_xticks(range(len(kinds)), map(_text, kinds))
    axes.set_ylim(0, 105)
    axes.set_title("by question type; paler: fewer tokens kept", fontsize="medium")
    axes.set_ylabel("accuracy, %")
