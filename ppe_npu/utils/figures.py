"""Figures of matplotlib, drawn without a display and without pyplot's global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppe_npu.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of this size in inches. options: Figure's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int, **options: Any) -> Path:
    """Write a figure as a PNG file, whole or not at all. options: those of savefig()."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, **options)
    return write_bytes(path, drawn.getvalue())
