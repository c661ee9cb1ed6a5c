"""Numbers of published tables, as data: one .json file per paper, with its source and what is known of its protocol.

Reports show them in tables of their own and never mix them with a run's numbers, because most papers do not state their
prompts, sizes and scoring rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.evaluation.tables import markdown
from ppe_npu.utils import escape

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Names of the papers whose tables are here."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    """The tables of a paper: {"paper", "source", "tables": [{"title", "protocol", "benchmarks": [this package's names],
    "rows": [{"method", "kept" (share of the tokens, or None), "scores" (in the paper's unit, or None)}]}]}.

    Raises:
        InputError: no such paper.
    """
    if name not in names():
        raise InputError(f"--published {name} is unknown: use {', '.join(names())} or all")
    return json.loads((_HERE / f"{name}.json").read_text(encoding="utf-8"))


def cells(asked: Sequence[str] | None) -> list[dict[str, Any]]:
    """The tables of papers: [{"paper", "source", "tables": [{"title" (with the protocol), "cells": (head, lines)}]}];
    [] if no paper is asked for.

    Args:
        asked: names(), or "all".

    Raises:
        InputError: there are no tables of a paper.
    """
    chosen = names() if "all" in (asked or ()) else list(dict.fromkeys(asked or ()))
    found = [load(name) for name in chosen]
    return [{**paper, "tables": [_table(table) for table in paper["tables"]]} for paper in found]


def _table(table: Mapping[str, Any]) -> dict[str, Any]:
    head = ["method", "tokens kept", *table["benchmarks"]]
    lines = [[row["method"], _kept(row["kept"]), *map(_score, row["scores"])] for row in table["rows"]]
    return {"title": f"{table['title']} (protocol: {table['protocol']})", "cells": (head, lines)}


def paragraphs(asked: Sequence[str] | None) -> list[str]:
    """cells() as paragraphs of Markdown.

    Raises:
        InputError: there are no tables of a paper.
    """
    found = cells(asked)
    if not found:
        return []
    parts = ["## Published numbers, not ours", "As stated in their sources; never averaged or joined with the above."]
    for paper in found:
        parts += [f"### {escape.markdown(paper['paper'])}", escape.markdown(f"Source: {paper['source']}.")]
        for table in paper["tables"]:
            parts += [escape.markdown(table["title"]), markdown(*table["cells"])]
    return parts


def _kept(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
