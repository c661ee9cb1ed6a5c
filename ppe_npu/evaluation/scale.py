"""The unit, the factor and the decimals with which reports show the scores of a benchmark, as the benchmark declares.

They are never guessed from the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Scale = dict[str, Any]
PERCENT: Scale = {"maximum": 1.0, "factor": 100.0, "decimals": 1}
UNDECLARED: Scale = {"maximum": None, "factor": 1.0, "decimals": 2}


def declared(benchmark: Any) -> Scale:
    """The Scale of a benchmark's metrics: {"maximum": the best possible score, or None; "factor": the number by which
    shown scores are multiplied; "decimals": the number of shown decimals}.

    If a benchmark declares no `maximum`, its metrics have a unit of their own and are shown as they are.
    """
    maximum = getattr(benchmark, "maximum", None)
    if maximum is None:
        return dict(UNDECLARED)
    factor = getattr(benchmark, "factor", PERCENT["factor"])
    decimals = getattr(benchmark, "decimals", PERCENT["decimals"])
    return {"maximum": float(maximum), "factor": float(factor), "decimals": int(decimals)}


def is_percent(scale: Mapping[str, Any]) -> bool:
    """Whether the scores shown range from 0 to 100; only such scores are averaged over benchmarks."""
    return scale["maximum"] is not None and scale["maximum"] * scale["factor"] == 100


def named(score: str, scale: Mapping[str, Any]) -> str:
    """A score with its unit: "accuracy, %", "total, of 2,800", "CIDEr, x 100", "length"."""
    if is_percent(scale):
        return f"{score}, %"
    if scale["factor"] != 1:
        return f"{score}, x {scale['factor']:g}"
    return score if scale["maximum"] is None else f"{score}, of {scale['maximum']:,.0f}"


def scaled(value: float | None, scale: Mapping[str, Any], sign: str = "") -> str:
    """A score as text; a dash for None."""
    return "-" if value is None else f"{scale['factor'] * value:{sign}.{scale['decimals']}f}"
