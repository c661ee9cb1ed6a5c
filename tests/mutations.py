"""One change somewhere in a JSON value, as an editor, another program or a failing disk makes it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

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


def places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    """The way to every value in it: keys and numbers."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield (*above, key)
        yield from places(inner, (*above, key))


def mutated(value: Any, dice: random.Random) -> Any:
    """A copy in which one entry is gone, has a neighbour or another name, or is junk; near the top more often."""
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
