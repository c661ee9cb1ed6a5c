"""Answers that name fields: dictionaries in Python's, JSON's or no particular syntax, and how many fields are right.

Source: OCRBench v2 (Fu et al. 2025, arXiv 2501.00321), eval_scripts/TEDS_metric.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

_FENCED = re.compile(r"```(?:python|json)?\n(.*?)\n```", re.DOTALL | re.IGNORECASE)
# The published pattern with possessive quantifiers, which prevent backtracking on long answers and change no match.
_PAIR = re.compile(r'["\']?([\w\s]++)["\']?\s*+[:=]\s*["\']?([^\n,"\'{}]+)["\']?')
_NOT_PYTHON = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


def said_fields(answer: str) -> dict[str, str]:
    """The fields of an answer: those of a dictionary, fenced or alone; else all pairs "name: value" or "name=value"."""
    fenced = _FENCED.search(answer)
    content = fenced[1] if fenced else answer.strip()
    found = value_of(content)
    if found is None:
        found = {key.strip(): value for key, value in _PAIR.findall(content)}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        return {}
    return {key.strip(): str(value).strip() for key, value in found.items()}


def value_of(text: str) -> Any:
    """The value of a text in JSON, else as a Python literal; None if it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return literal(text)


def literal(text: str) -> Any:
    """The value of a text as a Python literal; None if it is none."""
    try:
        return ast.literal_eval(text)
    except _NOT_PYTHON:
        return None


def true_fields(text: str) -> dict[str, list[Any]]:
    """The fields of a reference, each with the list of all its right values."""
    found = value_of(text.strip('"'))
    found = literal(found) if isinstance(found, str) else found
    if not isinstance(found, Mapping):
        return {}
    return {key: value if isinstance(value, list) else [value] for key, value in found.items()}


def fields_score(said: Mapping[str, str], right: Mapping[str, list[Any]]) -> float:
    """The fraction of right fields among those that either dictionary has.

    A field is right if it has one of its right values, except for case and blanks. A field that may be missing (None is
    a right value) is not counted if the answer lacks it.
    """
    if not right or not all(right.values()):
        return 0.0
    scores = []
    for key in {**said, **right}:
        values = right.get(key, [])
        if key in said:
            scores.append(float(any(value is not None and _bare(said[key]) == _bare(value) for value in values)))
        elif None not in values:
            scores.append(0.0)
    return sum(scores) / len(scores) if scores else 0.0


def _bare(value: Any) -> str:
    return str(value).lower().strip().replace("\n", " ").replace(" ", "")


def chart_values(answer: str) -> dict[Any, Any]:
    """The Python dictionary in an answer's longest fence, else in the whole answer, with or without "name =" before it;
    {} if there is none."""
    found = _FENCED.findall(answer)
    content = max(found, key=len) if found else answer.strip()
    content = re.sub(r"^\s*\w+\s*=\s*", "", content.strip(), count=1)
    content = re.sub(r"#.*", "", content)
    if "}" in content:
        content = content[: content.rindex("}") + 1]
    values = literal(content)
    return values if isinstance(values, dict) else {}
