"""The summary of a run, for people to read: summary.json, summary.md and loss.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.files import write_json, write_text
from ppe_npu.utils.figures import new_figure, save_figure
from ppe_npu.utils.optional import optional

_PAGE, _PLOT = "summary.md", "loss.png"


def write_summary(output: str | Path, summary: dict[str, Any]) -> None:
    """Write a run's summary beside its checkpoints, with a plot if matplotlib is installed. summary.json is written
    last: a run that has it has ended.

    Args:
        summary: TrainResult.to_dict(), plus settings, data (Survey.to_dict()) and versions.
    """
    output = Path(output)
    losses = summary["losses"]
    drawn = bool(losses) and _can_draw()
    if drawn:
        plot_losses(losses, output / _PLOT)
    write_text(output / _PAGE, _markdown(output.name, summary, drawn))
    write_json(output / "summary.json", summary)


def _can_draw() -> bool:
    try:
        optional("matplotlib.figure", "the plot", "matplotlib")
    except InputError:
        return False
    return True


def _markdown(title: str, summary: dict[str, Any], drawn: bool) -> str:
    settings, data = summary["settings"], summary["data"]
    losses = summary["losses"]
    rows = {
        "model": settings["model"],
        "compression": data["compression"],
        "records": f"{data['records']:,} ({data['faults']:,} unusable, {summary['skipped']:,} failed to be read)",
        "steps": f"{summary['steps']:,}",
        "loss": f"{losses[0][1]:.4f} first, {losses[-1][1]:.4f} last" if losses else "not logged",
        "validation loss": f"{summary['validation'][-1][1]:.4f} last" if summary["validation"] else "no records",
        "parameters": f"{summary['parameters']:,}, of which {summary['trainable']:,} trainable",
        "visual tokens kept": "- (there are no visual tokens)" if summary["retention"] is None else (
            f"{summary['retention']:.1%}, averaged over decoder layers"
        ),
        "tokens/s": f"{summary['tokens_per_second']:,.0f} of the prompts as given",
        "seconds": f"{summary['seconds']:,.0f} (this call)",
        "peak memory": "not measured on a CPU" if summary["peak_memory"] is None else (
            f"{summary['peak_memory'] / 2**20:,.0f} MiB of the first process"
        ),
        "device": summary["versions"]["device"],
    }  # fmt: skip
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    plot = f"![loss by step]({_PLOT})" if drawn else "No plot: " + ("matplotlib is not installed." if losses else "-")
    return f"# Training run {title}\n\n{table}\n\n{plot}\n\nAll settings: train.json. The data: data.md.\n"


def plot_losses(losses: Sequence[tuple[int, float]], path: Path) -> None:
    """Draw the loss by step: every logged value, and their running mean if there are many."""
    steps, values = zip(*losses)
    figure = new_figure(7, 4)
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.83))  # left, bottom, width, height, as fractions of the figure
    many = len(values) >= 20
    axes.plot(steps, values, linewidth=1, alpha=0.35 if many else 1.0, label="logged", marker="" if many else ".")
    if many:
        axes.plot(steps, _running_mean(values, max(len(values) // 20, 2)), linewidth=2, label="running mean")
        axes.legend()
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (mean over tokens)")
    axes.grid(alpha=0.3)
    save_figure(figure, path, 120)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """For each value the mean of it and the values before it, at most `width` in all."""
    windows = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]
