"""Approximate search for a text in a longer one: the most similar part, and all positions within some edits.

Source: allenai/olmocr's bench/tests.py uses rapidfuzz (fuzz.ratio, fuzz.partial_ratio) and fuzzysearch
(find_near_matches). The functions here give the same numbers and, except for ties of a character, the same positions.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np

_UNIT = 8  # longest unit, in characters, whose repetitions are shortened


def ratio(first: str, second: str) -> float:
    """Similarity in [0, 1]: 1 - insertions and deletions per character of both texts."""
    both = len(first) + len(second)
    return _share(both - 2 * _common(_places(first), len(first), second), both) if both else 1.0


def stands_in(text: str, page: str, least: float) -> bool:
    """Whether a part of the page has a ratio() of at least `least` to the text. Parts are as long as the text; at the
    beginning and the end of the page shorter ones count, too. If the page is shorter, the two exchange their roles."""
    if text and text in page:
        return least <= 1.0
    if not text or not page:
        return least <= float(text == page)
    page = shortened(page, 2 * len(text))
    short, long = (text, page) if len(text) <= len(page) else (page, text)
    return _part(short, long, least) or (len(short) == len(long) and _part(long, short, least))


def shortened(page: str, ends: int) -> str:
    """The page with long repetitions, such as rows of dots, shortened to at least `ends` characters at either end and
    little between them; the positions that are removed are all alike."""
    for unit in range(1, _UNIT + 1):
        if len(page) <= 2 * ends + 2 * unit:
            break
        signs = np.frombuffer(page.encode("utf-32-le", "surrogatepass"), np.uint32)
        same = np.concatenate([[False], signs[unit:] == signs[:-unit], [False]])
        turns = np.flatnonzero(same[1:] != same[:-1])
        parts, done = [], 0
        for start, end in zip(turns[::2].tolist(), turns[1::2].tolist()):
            more = (end + unit - start - 2 * ends) // unit - 1  # units to remove; one stays between the ends
            if more > 0:
                parts.append(page[done : start + ends])
                done = start + ends + more * unit
        page = "".join([*parts, page[done:]])
    return page


def _share(edits: int, characters: int) -> float:
    """1 - edits / characters, rounded like rapidfuzz's percentage, which the benchmark divides by 100."""
    return (1.0 - edits / characters) * 100.0 / 100.0


def _part(short: str, long: str, least: float) -> bool:
    size = len(short)
    places, left = _places(short), Counter(short)

    def fits(start: int, end: int) -> bool:
        part = long[start:end]
        return _share(size + len(part) - 2 * _common(places, size, part), size + len(part)) >= least

    ends = range(max(1, int(least * size / (2.0 - least)) - 1), size)  # shorter parts are too unlike
    if any(fits(0, end) or fits(len(long) - end, len(long)) for end in ends):
        return True
    needed = next((many for many in range(size + 1) if _share(2 * size - 2 * many, 2 * size) >= least), size + 1)
    shared = 0  # characters that the part shares with the text, in any order
    for at, sign in enumerate(long):
        if sign in left:
            shared += left[sign] > 0
            left[sign] -= 1
        if at >= size and (gone := long[at - size]) in left:
            left[gone] += 1
            shared -= left[gone] > 0
        if at >= size - 1 and shared >= needed and fits(at - size + 1, at + 1):
            return True
    return False


def _places(text: str) -> dict[str, int]:
    places: dict[str, int] = {}
    for number, sign in enumerate(text):
        places[sign] = places.get(sign, 0) | 1 << number
    return places


def _common(places: dict[str, int], size: int, text: str) -> int:
    """The length of the longest common subsequence (Hyyrö 2004); a row of the table is encoded in one integer."""
    full = (1 << size) - 1
    row = full
    for sign in text:
        same = row & places.get(sign, 0)
        row = (row + same | row - same) & full
    return size - row.bit_count()


def near_places(text: str, page: str, most: int) -> list[int]:
    """Starts of the parts of the page that are at most `most` edits away from the text. Of overlapping parts only the
    best one counts: the fewest edits, then the longest."""
    if not most:
        return _all(text, page)
    found = sorted(_within(text, page, most))
    groups: list[list[tuple[int, int, int]]] = []
    end = -1
    for part in found:
        if part[0] >= end:
            groups.append([])
        groups[-1].append(part)
        end = max(end, part[1])
    return [min(group, key=lambda part: (part[2], part[0] - part[1]))[0] for group in groups]


def _all(text: str, page: str) -> list[int]:
    found, at = [], page.find(text)
    while at >= 0:
        found.append(at)
        at = page.find(text, at + 1)
    return found


def _within(text: str, page: str, most: int) -> set[tuple[int, int, int]]:
    """{(start, end, edits)} of parts within `most` edits; each holds one of most + 1 pieces of the text unchanged."""
    size = max(len(text) // (most + 1), 1)
    found = set()
    for start in range(0, len(text) - size + 1, size):
        before, after = text[:start][::-1], text[start + size :]
        for at in _all(text[start : start + size], page):
            right = _grown(after, page[at + size : at + size + len(after) + most], most)
            if right is None:
                continue
            left = _grown(before, page[max(0, at - start - most + right[0]) : at][::-1], most - right[0])
            if left is not None:
                found.add((at - left[1], at + size + right[1], left[0] + right[0]))
    return found


@lru_cache(maxsize=4096)  # a row of dots has a thousand positions, nearly all with the same surroundings
def _grown(text: str, page: str, most: int) -> tuple[int, int] | None:
    """(edits, length) of the prefix of `page` nearest to the text, the longest of equally near ones; None if it is more
    than `most` edits away."""
    row = list(range(len(text) + 1))
    best = (row[-1], 0)
    for length, sign in enumerate(page, 1):
        row, above = [length], row
        for number, other in enumerate(text, 1):
            row.append(min(above[number - 1] + (sign != other), above[number] + 1, row[-1] + 1))
        if row[-1] <= best[0]:
            best = (row[-1], length)
        elif min(row) > most:
            break
    return best if best[0] <= most else None
