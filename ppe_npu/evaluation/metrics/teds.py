"""TEDS, the similarity of two tables by the edit distance of their trees.

Source: Zhong et al. 2020 (arXiv 1911.10683), as OCRBench v2 computes it (eval_scripts/TEDS_metric.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppe_npu.evaluation.metrics.edits import Node, levenshtein, tree_distance
from ppe_npu.evaluation.metrics.markup import Element, read_markup


def teds(answer: str, truth: str) -> float:
    """Similarity in [0, 1]: 1 - distance per node of the larger table; 0.0 if either page has no <table> in its <body>.

    Args:
        answer, truth: pages of HTML.
    """
    tables = _table(answer), _table(truth)
    if None in tables:
        return 0.0
    most = max(sum(1 for _ in table.below()) for table in tables)
    try:
        said, right = map(_tree, tables)
    except ValueError:  # a span that is no number
        return 0.0
    return max(1.0 - tree_distance(said, right, _rename) / most, 0.0) if most else 0.0


def page_of(table: str) -> str:
    """A page of HTML with a table, whose own tags may be missing in the text."""
    table = table.replace("\n", "")
    if "<table" not in table:
        table = f"<table>{table}"
    if "</table>" not in table:
        table = f"{table}</table>"
    if "<body>" not in table:
        table = f"<body>{table}</body>"
    return table if "<html>" in table else f"<html>{table}</html>"


def page_of_markdown(table: str) -> str:
    """A page of HTML with a table that is written with bars; its second line is skipped, whatever it contains."""
    lines = table.strip("`markdown").strip("`").strip().split("\n")  # as published, this strips those letters, too
    rows = [[_cell(cell) for cell in line.strip().split("|")[1:-1]] for line in (lines[0], *lines[2:])]
    text = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<html><body><table>{text}</table></body></html>".replace("\n", "")


def _cell(text: str) -> str:
    return " " if set(text) == {" "} else text.strip()


def page_of_chart(values: Mapping[Any, Any]) -> str:
    """A page of HTML with a row per entry; the characters of a value are separated by blanks, as published."""
    rows = "".join(f"<tr><td>{key}</td><td>{' '.join(str(value))}</td></tr>" for key, value in values.items())
    return f"<html><body><table>{rows}</table></body></html>"


def _table(page: str) -> Element | None:
    root = read_markup(page, closing=True)
    bodies = [] if root is None else [element for element in root.below() if element.tag == "body"]
    return next((child for body in bodies for child in body.children if child.tag == "table"), None)


def _tree(element: Element) -> Node:
    """The tree of a table: rows and cells. A cell's label holds its text as characters, and elements in it as tags.

    Raises:
        ValueError: a span is no number.
    """
    if element.tag == "td":
        spans = (int(element.attributes.get(name, "1")) for name in ("colspan", "rowspan"))
        return Node((element.tag, *spans, _tokens(element)))
    return Node((element.tag, None, None, []), [_tree(child) for child in element.children])


def _tokens(element: Element) -> list[str]:
    """Characters and tags of a cell; as published, text that follows a cell inside the cell is left out."""
    found: list[str] = []
    after = ""
    for part in element.content:
        if isinstance(part, Element):
            found += [f"<{part.tag}>", *_tokens(part), f"</{part.tag}>"]
            after = part.tag
        elif after != "td":
            found += part
    return found


def _rename(first: tuple[Any, ...], second: tuple[Any, ...]) -> float:
    if first[:3] != second[:3]:
        return 1.0
    one, other = first[3], second[3]
    return levenshtein(one, other) / max(len(one), len(other)) if one or other else 0.0
