"""Random changes to a JSON value or a file, as made by an editor, another program or a failing disk."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import draws
import pytest

JUNK = [
    *(None, True, False, 0, 5, -1, 0.5, 7.5, 10**30, float("inf"), float("-inf"), float("nan"), [], {}, [1], [[]]),
    *(
        "",
        "0",
        "x\ud800",
        "a\0",
        "../../x",
        "<script>",
        "a" * 5000,
        [None, None],
        ["a"],
        {"index": 0},
        {"a": {"b": []}},
    ),
]
KEYS = [
    "x",
    "",
    "<b>",
    "../x",
    "a" * 300,
    "a\0",
    "files",
    "steps",
    "headline",
    "units",
    "metrics",
    "protocol",
    "engine",
]


def dice(*names: Any) -> random.Random:
    """The random generator of one mutation: the same in every run of `make test`, another with each PPE_TEST_SEED."""
    return random.Random(f"{draws.SEED} {' '.join(map(str, names))}")


def thousand(short: int) -> pytest.MarkDecorator:
    """Parametrizes a test by `numbers` of mutations: a few in every run, and a thousand in four slow tests."""
    slow = [pytest.param(range(n, n + 250), marks=pytest.mark.slow) for n in range(0, 1000, 250)]
    return pytest.mark.parametrize("numbers", [range(short), *slow], ids=str)


def both(found: Sequence[bool]) -> bool:
    """Whether both outcomes occurred in at least a twentieth of the cases; True for fewer than 50 cases."""
    return len(found) < 50 or len(found) // 20 < sum(found) < len(found) - len(found) // 20


def places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    """The path of keys and indices to every value inside."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield (*above, key)
        yield from places(inner, (*above, key))


def mutated(value: Any, dice: random.Random) -> Any:
    """A copy in which one entry, more often one near the top, is gone, gets a neighbour or a new name, or is junk."""
    value = json.loads(json.dumps(value))
    ways = list(places(value))
    if not ways:
        return dice.choice(JUNK)
    near = [way for way in ways if len(way) < 4]
    *above, last = dice.choice(near if dice.random() < 0.5 else ways)
    holder = value
    for key in above:
        holder = holder[key]
    kind = dice.random()
    if kind < 0.25:
        del holder[last]
    elif kind < 0.35 and isinstance(holder, dict):
        holder[dice.choice(KEYS)] = dice.choice(JUNK)
    elif kind < 0.45 and isinstance(holder, dict):
        holder[dice.choice(KEYS)] = holder.pop(last)
    else:
        holder[last] = dice.choice(JUNK)
    return value


def _is_lines(content: bytes) -> bool:
    """Whether the content has one JSON value per line, whatever the file's name."""
    try:
        json.loads(content)
    except ValueError:
        return True
    return False


def damage(file: Path, strange: Path, dice: random.Random) -> str:
    """Change a file in one way and return the way. strange: a file whose content it may get."""
    content = file.read_bytes()
    whole = file.suffix in (".json", ".jsonl")
    kind = dice.choice(["gone", "folder", "pipe", "bytes", "cut", "other", "link"] + ["value"] * 12 * whole)
    file.unlink()
    if kind == "value":
        lines = content.splitlines() if _is_lines(content) else [content]
        at = dice.randrange(len(lines))
        lines[at] = json.dumps(mutated(json.loads(lines[at]), dice)).encode()
        file.write_bytes(b"\n".join(lines) + b"\n")
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "bytes":
        at = dice.randrange(len(content))
        file.write_bytes(content[:at] + dice.choice([b"\0", b"7", b'"', b"\xff", b"{}"]) + content[at + 1 :])
    elif kind == "cut":
        file.write_bytes(content[: dice.randrange(len(content))])
    elif kind == "other" and strange.is_file():
        file.write_bytes(strange.read_bytes())
    elif kind == "link":
        file.symlink_to(file)
    return kind
