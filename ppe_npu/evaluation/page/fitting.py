"""The samples of a page as JSON text that fits into a given number of bytes.

If the samples do not fit, all their texts are cut shorter, so that every sample stays. Only if that is not enough,
samples are left out; every benchmark gets an equal share of the room.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

TEXT = {"prompt": 400, "truth": 200, "answer": 400}  # characters that are shown where there is room
_PARTS = (1, 2, 4, 8)  # divisors of these limits; the first that fits is used


def cut(text: str, limit: int) -> str:
    """A text of at most `limit` characters; an ellipsis marks a cut."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def fitted(found: Sequence[Mapping[str, Any]], room: int) -> str:
    """The samples of all benchmarks as JSON that is safe inside a <script>: a list of page.samples(), each with
    "left_out", the number of its rows that did not fit.

    Args:
        room: bytes that the rows may take.
    """
    for part in _PARTS:
        lines = [[dumped(_shortened(row, part)) for row in one["rows"]] for one in found]
        if sum(map(_size, lines)) <= room:
            break
    kept = _shared(lines, room)
    whole = [
        {**{key: value for key, value in one.items() if key != "rows"}, "left_out": len(own) - len(few)}
        for one, own, few in zip(found, lines, kept)
    ]
    texts = [f'{dumped(head)[:-1]},"rows":[{",".join(few)}]}}' for head, few in zip(whole, kept)]
    return f"[{','.join(texts)}]"


def dumped(value: Any) -> str:
    """JSON without "<", with which a text could end the <script> around it. Non-ASCII letters are not escaped, because
    Chinese would take twice the room."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _size(lines: Sequence[str]) -> int:
    return sum(len(line.encode("utf-8")) + 1 for line in lines)


def _shortened(row: Mapping[str, Any], part: int) -> dict[str, Any]:
    """A row whose texts are cut to 1 / `part` of the usual limits."""
    if part == 1:
        return dict(row)
    few = {key: limit // part for key, limit in TEXT.items()}
    texts = {key: cut(row[key], few[key]) for key in ("prompt", "truth")}
    return {**row, **texts, "answers": [cut(answer, few["answer"]) for answer in row["answers"]]}


def _shared(lines: Sequence[Sequence[str]], room: int) -> list[Sequence[str]]:
    """The first rows of each benchmark that fit into its share of the room; what small benchmarks leave, others get."""
    kept: list[Sequence[str]] = [()] * len(lines)
    order = sorted(range(len(lines)), key=lambda number: _size(lines[number]))
    for place, number in enumerate(order):
        own, few = room // (len(order) - place), []
        for line in lines[number]:
            own -= _size([line])
            if own < 0:
                break
            few.append(line)
        kept[number], room = few, room - _size(few)
    return kept
