"""Draws docs/architecture.png: the rooms of the house and who imports whom, read from the code."""

from collections import Counter
from pathlib import Path

from check_house import ROOT, imports, module_name
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Room -> (column, row) on the sheet; arrows should run downwards.
ROOMS = {
    "cli": (1.5, 6),
    "demo": (1.25, 5),
    "training": (0.5, 4),
    "evaluation": (2.5, 4),
    "inputs, loading": (3.3, 3),
    "models": (1.75, 3),
    "compression": (1.25, 2),
    "methods": (0.5, 1.2),
    "plan, layout, grouping,\npositions, spans, config": (2.5, 1.2),
    "backends": (1.5, 0.3),
}
_BELONGS = {
    **dict.fromkeys(("cli", "commands", "describe"), "cli"),
    **dict.fromkeys(("data", "placeholders", "inputs", "loading"), "inputs, loading"),
    **dict.fromkeys(
        ("plan", "layout", "grouping", "members", "positions", "spans", "config"),
        "plan, layout, grouping,\npositions, spans, config",
    ),
    **dict.fromkeys(("compression", "run", "merging", "events", "state", "masks", "report"), "compression"),
}


def room(module: str) -> str | None:
    """The room of a module of ours; None for helpers that stand everywhere (files, errors, compat)."""
    parts = module.split(".")
    if parts[0] != "ppe_npu" or len(parts) == 1:
        return None
    name = _BELONGS.get(parts[1], parts[1])
    return name if name in ROOMS else None


def arrows() -> Counter:
    """(importing room, imported room) -> number of files that do."""
    found: Counter = Counter()
    for path in [*ROOT.glob("ppe_npu/**/*.py"), *ROOT.glob("backends/**/*.py")]:
        module = module_name(path)
        targets = {room(target) for _, target in imports(path, module)} - {None, room(module)}
        found.update((room(module), target) for target in targets if room(module))
    return found


def draw(path: Path) -> None:
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    boxes = {}
    for name, (x, y) in ROOMS.items():
        box = {"boxstyle": "round,pad=0.55", "facecolor": "#f4f1e8", "edgecolor": "#333333"}
        boxes[name] = axes.text(x, y, name, ha="center", va="center", fontsize=11, bbox=box, zorder=3).get_bbox_patch()
    for (start, end), files in sorted(arrows().items(), key=str):
        style = {"arrowstyle": "-|>", "color": "#4a6fa5", "alpha": 0.75, "lw": 0.8 + 0.3 * min(files, 6)}
        ends = {"patchA": boxes[start], "patchB": boxes[end], "shrinkA": 0, "shrinkB": 1}
        axes.annotate("", ROOMS[end], ROOMS[start], arrowprops={**style, **ends}, zorder=1)
    axes.set_xlim(-0.2, 4.3)
    axes.set_ylim(-0.2, 6.5)
    axes.axis("off")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    target = ROOT / "docs" / "architecture.png"
    draw(target)
    print(f"written to {target.relative_to(ROOT)}")
