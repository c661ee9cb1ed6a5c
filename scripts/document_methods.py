"""Rewrites the generated parts of documents: the tables of methods in the README and docs/methods.md, from the
registered classes; the table of rules of positions in docs/positions.md; and, if a methods.json of `make demo
METHODS=...` is given, the report on its numbers in docs/methods.md."""

import json
import re
import sys
import textwrap
from pathlib import Path

from ppe_npu.demo import methods_page
from ppe_npu.files import write_text
from ppe_npu.methods.base import published
from ppe_npu.methods.listing import Listed
from ppe_npu.methods.positions import rule_named, rule_names

ROOT = Path(__file__).resolve().parent.parent
README, PAGE, POSITIONS = ROOT / "README.md", ROOT / "docs" / "methods.md", ROOT / "docs" / "positions.md"
START, END = "<!-- methods: scripts/document_methods.py writes this table -->\n", "<!-- methods end -->\n"
MEASURED = "<!-- measured: scripts/document_methods.py writes what follows -->\n"
MEASURED_END = "<!-- measured end -->\n"
RULES = "<!-- rules: scripts/document_methods.py writes this table -->\n"
RULES_END = "<!-- rules end -->\n"
WIDEST = 160  # characters of a line, as in scripts/check_house.py


def markdown(described: bool = True) -> str:
    """A row per method: its name, what it does (if described), its paper, its places, what it looks at, its budget."""
    lines = [("method", "what it does", "paper", "place", "cost: looks at", "budget"), ("---",) * 6]
    lines += [_row(Listed.of(name)) for name in published()]
    return "".join(f"| {' | '.join(cells if described else (cells[0], *cells[2:]))} |\n" for cells in lines)


def _row(one: Listed) -> tuple[str, ...]:
    paper = one.source
    rest = (paper, ", ".join(one.places), one.looks_at, one.budget)
    # The first sentence is cut to the room that is left in the line.
    room = WIDEST - sum(map(len, rest)) - len(one.name) - len("| `` |  |") - 3 * len(rest)
    return f"`{one.name}`", textwrap.shorten(one.what, room, placeholder=" ..."), *rest


def settings() -> str:
    """A row per method: what one cell is, and its settings with their defaults."""
    lines = [("method", "one cell is", "settings and their defaults"), ("---",) * 3]
    for one in map(Listed.of, published()):
        fields = {key: value for key, value in one.fields.items() if key != "layer" or value is not None}
        said = ", ".join(f"{key}={_plain(value)}" for key, value in fields.items())
        room = WIDEST - len(one.name) - len(one.scope) - len("| `` |  | `` |")
        lines.append((f"`{one.name}`", one.scope, f"`{textwrap.shorten(said, room, placeholder=' ...')}`"))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rules() -> str:
    """A row per rule of positions."""
    lines = [("`members`", "positions that a merged token keeps"), ("---",) * 2]
    lines += [(f"`{name}`", rule_named(name).what) for name in rule_names()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def with_rules(page: str) -> str:
    """The text of docs/positions.md with the current table of rules."""
    return _between(page, RULES, RULES_END, rules())


def _plain(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
    return text.replace("|", "/")


def written(page: str, table: str) -> str:
    """The text of a page with this table of methods."""
    return _between(page, START, END, table)


def measured(page: str, results: dict) -> str:
    """The text of a page with the report on a methods.json."""
    text = methods_page.measured(results["results"], results["command"])
    lines = [line if line.startswith("|") else textwrap.fill(line, WIDEST - 10) for line in text.splitlines()]
    return _between(page, MEASURED, MEASURED_END, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n")


def _between(page: str, start: str, end: str, text: str) -> str:
    before, _, rest = page.partition(start)
    return before + start + text + end + rest.partition(end)[2]


if __name__ == "__main__":
    for path, marks in ((README, (START, END)), (PAGE, (START, END, MEASURED, MEASURED_END))):
        now = path.read_text(encoding="utf-8")
        missing = [mark.strip() for mark in marks if mark not in now]
        if missing:
            sys.exit(f"{path.name} has no {' and no '.join(missing)}: put the marks around its table")
        new = written(now, markdown(described=False) if path == README else markdown() + "\n" + settings())
        if path == PAGE and len(sys.argv) > 1:
            new = measured(new, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        print(write_text(path, new))
    print(write_text(POSITIONS, with_rules(POSITIONS.read_text(encoding="utf-8"))))
