"""Edit distances of two sequences or two ordered trees: the fewest parts that are deleted, inserted or renamed.

Source for trees: Zhang and Shasha 1989 (SIAM J. Comput. 18, 1245). All exact algorithms give the same number, including
APTED, which TEDS (Zhong et al. 2020, arXiv 1911.10683) uses for tables, and zss, which OCRBench v2 uses for outlines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Node:
    """A node of an ordered tree: a label, and children in order."""

    label: Any
    children: list[Node] = field(default_factory=list)

    def add(self, label: Any) -> Node:
        """Append a new child and return it."""
        self.children.append(Node(label))
        return self.children[-1]

    def size(self) -> int:
        """Number of nodes in the subtree, including this one."""
        return 1 + sum(child.size() for child in self.children)


def tree_distance(first: Node, second: Node, rename: Callable[[Any, Any], float]) -> float:
    """The edit distance of two trees; deleting or inserting a node costs 1.

    Args:
        rename: gives the cost, in [0, 1], of changing one label into another.
    """
    one, other = _Order.of(first), _Order.of(second)
    between = [[0.0] * len(other.labels) for _ in one.labels]  # distances between the subtrees of every pair of nodes
    for i in one.roots:
        for j in other.roots:
            _subtrees(one, other, i, j, between, rename)
    return between[-1][-1]


@dataclass
class _Order:
    """A tree's nodes in postorder: their labels, the number of each one's first leaf, and the numbers of the keyroots
    (the root, and all nodes with a sibling to their left)."""

    labels: list[Any]
    leaves: list[int]
    roots: list[int]

    @classmethod
    def of(cls, tree: Node) -> _Order:
        labels: list[Any] = []
        leaves: list[int] = []

        def visit(node: Node) -> int:
            firsts = [visit(child) for child in node.children]
            leaf = firsts[0] if firsts else len(labels)
            labels.append(node.label)
            leaves.append(leaf)
            return leaf

        visit(tree)
        last = {leaf: number for number, leaf in enumerate(leaves)}
        return cls(labels, leaves, sorted(last.values()))


def _subtrees(
    one: _Order,
    other: _Order,
    i: int,
    j: int,
    between: list[list[float]],
    rename: Callable[[Any, Any], float],
) -> None:
    """Fill in the distances of all pairs of subtrees that start at the first leaves below nodes i and j."""
    first, second = one.leaves[i], other.leaves[j]
    above: list[float] = [float(number) for number in range(j - second + 2)]
    rows = [above]
    for a in range(first, i + 1):
        row = [above[0] + 1.0]
        whole = one.leaves[a] == first
        start = one.leaves[a] - first  # the number of nodes before the subtree of a
        for at, b in enumerate(range(second, j + 1), 1):
            least = min(above[at] + 1.0, row[-1] + 1.0)
            if whole and other.leaves[b] == second:
                least = min(least, above[at - 1] + rename(one.labels[a], other.labels[b]))
                between[a][b] = least
            else:
                least = min(least, rows[start][other.leaves[b] - second] + between[a][b])
            row.append(least)
        rows.append(row)
        above = row


def levenshtein(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The fewest insertions, deletions and replacements that turn one sequence into the other.

    Source: Myers 1999 (J. ACM 46, 395), Hyyrö 2003: a column of the table is encoded in the bits of two integers.
    """
    if not first or not second:
        return max(len(first), len(second))
    places: dict[Any, int] = {}
    for number, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << number
    full, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    up, down, distance = full, 0, len(first)
    for item in second:
        same = places.get(item, 0)
        diagonal = (((same & up) + up) ^ up) | same | down
        more, less = down | ~(diagonal | up) & full, up & diagonal
        distance += bool(more & last) - bool(less & last)
        more = (more << 1 | 1) & full
        less = less << 1 & full
        up = less | ~(diagonal | more) & full
        down = more & diagonal
    return distance
