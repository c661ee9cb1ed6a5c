"""Write the README's table of methods anew, from the registered classes."""

import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path

from ppe_npu.files import write_text
from ppe_npu.methods import Method, method_class, method_names

PAGE = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- methods: scripts/document_methods.py writes this table -->\n", "<!-- methods end -->\n"
WIDEST = 160  # characters of a line, as scripts/check_house.py has it


def markdown() -> str:
    """A row per method: its name, what it does, its source, where it may stand, what it looks at, how it counts."""
    lines = [("method", "what it does", "paper", "place", "cost: looks at", "budget"), ("---",) * 6]
    classes = {name: method_class(name) for name in method_names()}
    lines += [_row(name, each) for name, each in classes.items() if each.__module__.startswith("ppe_npu.methods.")]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _row(name: str, method: type[Method]) -> tuple[str, ...]:
    example = method() if set(method.places) - {"layer"} else method(layer=1)
    paper = re.search(r"arXiv (\d{4}\.\d{5})", f"{method.__doc__} {import_module(method.__module__).__doc__}")
    rest = (
        f"arXiv {paper[1]}" if paper else "control",
        ", ".join(example.places),
        "places alone" if example.on_host else ", ".join(sorted(example.needs)),
        "exact" if example.counts == "exact" else "late",
    )
    # The first sentence of the class's docstring, as much of it as there is room for.
    what = re.split(r"(?<=[a-z\d)])\.\s|\.?\n\n", (method.__doc__ or "").strip(), maxsplit=1)[0].rstrip(".")
    room = WIDEST - sum(map(len, rest)) - len(name) - len("| `` |  |") - 3 * len(rest)
    return f"`{name}`", textwrap.shorten(what, room, placeholder=" ..."), *rest


def written(page: str) -> str:
    """The page with the table of today."""
    before, _, rest = page.partition(START)
    return before + START + markdown() + END + rest.partition(END)[2]


if __name__ == "__main__":
    now = PAGE.read_text(encoding="utf-8")
    if START not in now or END not in now:
        sys.exit(f"{PAGE.name} has no marks for the table: put {START.strip()} and {END.strip()} around it")
    print(write_text(PAGE, written(now)))
