"""Similarity of the outlines of two Markdown documents: the lines under each heading, whatever their text.

Source: OCRBench v2 (Fu et al. 2025, arXiv 2501.00321), eval_scripts/TEDS_metric.py (get_tree, STEDS). Texts are not
compared, but a blank line never matches, not even another blank line.
"""

from __future__ import annotations

import re

from ppe_npu.evaluation.metrics.edits import Node, tree_distance

_CLEANED = (
    (r"<bos>|<eos>|<pad>|<unk>", ""),
    (r"\s##(\S)", r"\1"),
    (r"\\\s", r"\\"),
    (r"\s\*\s\*\s", "**"),
    (r"{\s", "{"),
    (r"\s}", "}"),
    (r"\s}", "}"),
    (r"\\begin\s", r"\\begin"),
    (r"\\end\s", r"\\end"),
    (r"\\end{table}", r"\\end{table} \n\n"),
    (r"[\n*_]", " "),
)
_TOP, _UNTITLED = "ROOT", "TITLE"


def outline_score(answer: str, truth: str) -> float:
    """Similarity in [0, 1]: 1 - distance of the outlines per node of the larger one."""
    said, right = _outline(answer), _outline(truth)
    most = max(said.size(), right.size())
    return max(1.0 - tree_distance(said, right, _rename) / most, 0.0)


def _rename(first: str, second: str) -> float:
    return 0.0 if first.split() and second.split() else 1.0


def _outline(text: str) -> Node:
    """The tree of an outline: headings are children of the top. A line is a child of the first node that has the text
    of the last heading, even if that is another node."""
    top = Node(_TOP)
    untitled = under = top.add(_UNTITLED)
    for line in map(_clean, text.split("\n")):
        if line.startswith("#"):
            title = line.replace("#", "")
            top.add(title)
            under = _first(top, title) if title else untitled
        else:
            under.add(line)
    return top


def _clean(line: str) -> str:
    for pattern, put in _CLEANED:
        line = re.sub(pattern, put, line)
    return line


def _first(node: Node, label: str) -> Node | None:
    """The first node with that label, in preorder; None if there is none."""
    if node.label == label:
        return node
    return next((found for child in node.children if (found := _first(child, label)) is not None), None)
