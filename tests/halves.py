"""Selects every second combination of a test's parameters, like the squares of one colour on a chess board."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

LEAST = 4  # with fewer values of a single parameter, all are tested


def mark_slow(items: Iterable[pytest.Item]) -> None:
    """Mark every second combination of a test marked `half` as slow, unless it is slow anyway: each family is tested
    with half of the settings, and each setting with half of the families. A test with a single parameter keeps every
    second value, and the next such test of the file the other values: each method is tested by half of the laws."""
    files: dict[str, dict[str, list]] = {}
    for item in items:
        if item.get_closest_marker("half") and hasattr(item, "callspec") and not item.get_closest_marker("slow"):
            test = item.nodeid.partition("[")[0]
            files.setdefault(test.partition("::")[0], {}).setdefault(test, []).append(item)
    for tests in files.values():
        for place, cases in enumerate(tests.values()):
            # callspec.indices counts cases, not values, unless the parameters are a fixture's.
            for case, out in zip(cases, left_out([case.callspec._idlist for case in cases], first=place)):
                if out:
                    case.add_marker(pytest.mark.slow)


def left_out(cases: Sequence[Sequence[str]], first: int = 0) -> list[bool]:
    """Which of a test's cases are left out, so that each value of a parameter is combined with half of another's.

    Args:
        cases: the names of a case's values, one per parameter (parameters that are given together are one).
        first: for a single parameter, an odd number leaves out the first value, an even one the second.

    Returns:
        One bool per case. With several parameters, at least one case of each value stays.
    """
    columns = [column for column in zip(*cases) if len(set(column)) > 1]
    if len(columns) == 1 and len(cases) >= LEAST:
        return [(place + first) % 2 == 1 for place in range(len(cases))]
    if len(columns) < 2:
        return [False] * len(cases)
    places = [{value: place for place, value in enumerate(dict.fromkeys(column))} for column in columns]
    there, out = [Counter(column) for column in columns], []
    for values in zip(*columns):
        odd = sum(place[value] for place, value in zip(places, values)) % 2
        out.append(bool(odd) and all(count[value] > 1 for count, value in zip(there, values)))
        for count, value in zip(there, values) if out[-1] else ():
            count[value] -= 1
    return out
