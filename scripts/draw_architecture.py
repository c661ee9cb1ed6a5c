"""Draws docs/architecture.png: the parts of the package ("rooms") and the imports between them, read from the code."""

from collections import Counter
from pathlib import Path

from check_house import ROOT, imports, module_name

from ppe_npu.utils.figures import new_figure, save_figure

# Room -> (column, row) on the sheet; arrows should run downwards.
ROOMS = {
    "cli": (1.75, 7),
    "explorer": (2.9, 6.5),
    "demo": (1.75, 6),
    "training": (0.4, 5),
    "parity": (1.5, 5),
    "evaluation": (2.7, 5),
    "serving": (3.7, 5),
    "checkpoints": (3.1, 4.2),
    "data": (3.9, 3.4),
    "models": (1.4, 4),
    "engine": (0.9, 3),
    "inspect": (2.3, 3),
    "config, shorthand,\nreleased": (1.6, 2),
    "methods": (1.6, 1.1),
    "backends": (1.6, 0.2),
    "settings, errors,\nfiles, utils, compat": (3.6, 0.2),
}
_BELONGS = {
    **dict.fromkeys(("config", "shorthand", "released"), "config, shorthand,\nreleased"),
    **dict.fromkeys(("settings", "errors", "files", "utils", "compat"), "settings, errors,\nfiles, utils, compat"),
}


def room(module: str) -> str | None:
    """The room of one of the package's modules; None for other modules, the package itself, its names
    (ppe_npu.compress), and old_names."""
    parts = module.split(".")
    if parts[0] != "ppe_npu" or len(parts) == 1:
        return None
    name = _BELONGS.get(parts[1], parts[1])
    return name if name in ROOMS else None


def arrows() -> Counter:
    """{(importing room, imported room): number of importing files}."""
    found: Counter = Counter()
    for path in [*ROOT.glob("ppe_npu/**/*.py"), *ROOT.glob("backends/**/*.py")]:
        module = module_name(path)
        targets = {room(target) for _, target in imports(path, module)} - {None, room(module)}
        found.update((room(module), target) for target in targets if room(module))
    return found


def draw(path: Path) -> None:
    figure = new_figure(9.5, 8, layout="constrained")
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
    axes.set_ylim(-0.2, 7.4)
    axes.axis("off")
    save_figure(figure, path, 110)


if __name__ == "__main__":
    target = ROOT / "docs" / "architecture.png"
    draw(target)
    print(f"written to {target.relative_to(ROOT)}")
