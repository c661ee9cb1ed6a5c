"""Rewrites the table of docs/families.md from the facts of compressed models: the tiny random models of
tests/models/test_every_family.py."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "families.md"
START, END = "<!-- families: scripts/document_families.py writes this table -->\n", "<!-- families end -->\n"


def markdown() -> str:
    """A row per family: its class, its axes and pairs, its decoder layers, its videos, and the places of steps."""
    lines = [("transformers class", "axes", "pairs", "decoder layers", "videos", "steps at"), ("---",) * 6]
    lines += sorted(_row(name) for name in _tiny())
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def refused() -> str:
    """A line per class that was examined and is refused."""
    from ppe_npu.models.known import REFUSED

    return "".join(f"* `{name}`: {why}.\n" for name, why in sorted(REFUSED.items()))


def _tiny() -> dict:
    sys.path.insert(0, str(ROOT / "tests"))
    from families import EVERY

    return EVERY


def _row(name: str) -> tuple[str, ...]:
    from ppe_npu import CompressionConfig, compress
    from ppe_npu.models import _family, base_of

    tiny = _tiny()[name]
    model = compress(tiny.model(), CompressionConfig.preset("dense"))
    compression = base_of(model).compression
    vision, family = compression.vision, _family(type(model).__name__)
    places = ["input", "layer"]
    places += ["tower"] if vision.tower_blocks else ["tower (rebuilding)"] if vision.tile_blocks else []
    places += ["pixels"] if vision.pixels is not None else []
    own = type(model.model.language_model.layers[0]).__name__
    layers = "any of: " + ", ".join(sorted(family.LAYERS)) if len(family.LAYERS) > 2 else own
    videos = "no" if not (tiny.clip or name == "internvl") else "frames apart" if vision.frames_apart else "one run"
    axes = "t, h, w" if compression.axes == 3 else "1"
    layers = layers.replace("DecoderLayer", "")
    return f"`{type(model).__name__}`", axes, compression.pairs, layers, videos, ", ".join(places)


def written(page: str) -> str:
    """The text of the page with the current table."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return before + START + markdown() + "\nLooked at, and refused by name:\n\n" + refused() + END + after


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
