"""Write the README's table of methods anew, from the registered classes."""

import sys
import textwrap
from pathlib import Path

from ppe_npu.files import write_text
from ppe_npu.methods.listing import Listed, published

PAGE = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- methods: scripts/document_methods.py writes this table -->\n", "<!-- methods end -->\n"
WIDEST = 160  # characters of a line, as scripts/check_house.py has it


def markdown() -> str:
    """A row per method: its name, what it does, its source, where it may stand, what it looks at, how it counts."""
    lines = [("method", "what it does", "paper", "place", "cost: looks at", "budget"), ("---",) * 6]
    lines += [_row(Listed.of(name)) for name in published()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _row(one: Listed) -> tuple[str, ...]:
    paper = f"arXiv {one.paper}" if one.paper else "control"
    rest = (paper, ", ".join(one.places), one.looks_at, one.budget)
    # As much of the first sentence as there is room for.
    room = WIDEST - sum(map(len, rest)) - len(one.name) - len("| `` |  |") - 3 * len(rest)
    return f"`{one.name}`", textwrap.shorten(one.what, room, placeholder=" ..."), *rest


def written(page: str) -> str:
    """The page with the table of today."""
    before, _, rest = page.partition(START)
    return before + START + markdown() + END + rest.partition(END)[2]


if __name__ == "__main__":
    now = PAGE.read_text(encoding="utf-8")
    if START not in now or END not in now:
        sys.exit(f"{PAGE.name} has no marks for the table: put {START.strip()} and {END.strip()} around it")
    print(write_text(PAGE, written(now)))
