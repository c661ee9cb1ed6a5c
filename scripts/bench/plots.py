"""Plots of the benchmarks' results, drawn without a display."""

from collections.abc import Callable
from pathlib import Path

from ppe_npu.errors import InputError
from ppe_npu.utils.figures import new_figure, save_figure
from ppe_npu.utils.optional import optional

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")


def drawn(plot: Callable[[dict, Path], Path], result: dict, path: Path) -> str:
    """The path of the drawn plot, or why there is none: a missing matplotlib does not make a measurement fail."""
    try:
        optional("matplotlib", "the plot", "matplotlib")
    except InputError as error:
        return f"no plot: {error}"
    return str(plot(result, path))


def plot_ops(result: dict, path: Path) -> Path:
    """Milliseconds of every implementation, one line per case, with a stroke at the chip's limit."""
    rows = result["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["times"]))
    figure = new_figure(10, 1 + 0.3 * len(rows))
    axes = figure.subplots()
    places = range(len(rows))
    axes.scatter([row["limit_ms"] for row in rows], places, marker="|", s=160, color="black", label="limit of the chip")
    for name, colour in zip(names, COLOURS):
        points = [(row["times"][name]["ms"], at) for at, row in zip(places, rows) if name in row["times"]]
        axes.scatter(*zip(*points), s=30, color=colour, label=name)
    axes.set_yticks(places, [f"{row['op']} {row['shape']} {row['pass']}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"milliseconds, {result['device']['name']}")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
    return save_figure(figure, path, 120, bbox_inches="tight")


def plot_prefill(result: dict, path: Path) -> Path:
    """A panel for each part of each case: prefill (the vision tower's time is darker), decoding, a training step."""
    parts = result["parts"]
    figure = new_figure(9, 2.6 * len(parts))
    panels = figure.subplots(len(parts), squeeze=False)
    for (title, part), axes in zip(parts.items(), panels[:, 0]):
        rows = {name: row for name, row in part["rows"].items() if "ms" in row}
        axes.barh(list(rows), [row["ms"] for row in rows.values()], color=COLOURS[0])
        axes.barh(list(rows), [row.get("tower_ms", 0.0) for row in rows.values()], color="black", alpha=0.4)
        axes.invert_yaxis()
        axes.set_title(
            f"{title}: milliseconds{', grey: the vision tower' if title.endswith('prefill') else ''}", fontsize=9
        )
        axes.tick_params(labelsize=7)
    figure.tight_layout()
    return save_figure(figure, path, 120, bbox_inches="tight")


def plot_scaling(axes: dict[str, dict], path: Path) -> Path:
    """Two log-log panels per axis, milliseconds and MiB, with dotted lines of the theoretical order through the largest
    size's value."""
    figure = new_figure(4 * len(axes), 6.2)
    panels = figure.subplots(2, len(axes), squeeze=False, sharey="row")
    for column, (title, axis) in enumerate(axes.items()):
        sizes, theory = [row["size"] for row in axis["rows"]], axis["theory"]
        for (key, unit), panel in zip((("ms", "milliseconds"), ("mib", "MiB")), panels[:, column]):
            values = [row[key] for row in axis["rows"]]
            panel.loglog(sizes, values, marker="o", color=COLOURS[0], label="measured")
            expected = [values[-1] * (size / sizes[-1]) ** theory for size in sizes]
            panel.loglog(sizes, expected, ":", color="black", label=f"order {theory}")
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)
            panel.set_xlabel(title)
            panel.set_ylabel(unit if column == 0 else "")
    figure.tight_layout()
    return save_figure(figure, path, 120, bbox_inches="tight")
