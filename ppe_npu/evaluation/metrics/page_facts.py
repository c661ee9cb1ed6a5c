"""Facts about a page that its transcription must preserve: olmOCR-Bench's tests, each passed or failed.

Source: Poznanski et al. 2025 (arXiv 2502.18443), allenai/olmocr 0.4.27 bench/tests.py; the rule that a transcription
shorter than a text cannot contain it is from its main branch (dc802aa). There formulas are rendered by KaTeX in a
browser and compared by the positions of their symbols; here a formula passes only if its characters are the same, which
is the first step there, too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from ppe_npu.errors import shown
from ppe_npu.evaluation.metrics.cells import Table, html_tables, markdown_tables
from ppe_npu.evaluation.metrics.near_text import near_places, ratio, shortened, stands_in

_TEXTS = {  # kind of a test -> texts that it needs
    "present": ("text",),
    "absent": ("text",),
    "order": ("before", "after"),
    "table": ("cell",),
    "baseline": (),
    "math": ("math",),
}
_NUMBERS = {"page": 1, "max_diffs": 0, "first_n": 0, "last_n": 0, "max_length": 0, "max_repeats": 0}  # and minimums
_NEAR = ("up", "down", "left", "right", "top_heading", "left_heading")  # texts around a table's cell
_PLAIN = (
    (r"<br/?>", " "),
    (r"\s+", " "),
    (r"\*\*(.*?)\*\*", r"\1"),
    (r"__(.*?)__", r"\1"),
    (r"</?b>", ""),
    (r"</?i>", ""),
    (r"\*(.*?)\*", r"\1"),
    (r"_(.*?)_", r"\1"),
)
_SIGNS = str.maketrans("‘’‚“”„＿–—‑‒−\u00b5", "'''\"\"\"_-----\u03bc")
_FORMULAS = (r"\\\((.+?)\\\)", r"\\\[(.+?)\\\]", r"\$\$(.+?)\$\$", r"\$(.+?)\$")
_FOREIGN = re.compile(
    "[\u4e00-\u9fff\u3040-\u309f\u30a0-\u30ff\U0001f600-\U0001f64f\U0001f300-\U0001f5ff\U0001f680-\U0001f6ff"
    "\U0001f1e0-\U0001f1ff]"
)
_LONGEST = 5  # longest unit, in characters, whose repetitions at the end are counted
Fact = Mapping[str, Any]


def fact_fault(fact: Any) -> str | None:
    """What is wrong with a row of the data; None if nothing is."""
    if not isinstance(fact, Mapping) or fact.get("type") not in _TEXTS:
        return f"has no known type ({', '.join(_TEXTS)})"
    for name in ("pdf", "id", *_TEXTS[fact["type"]]):
        if not isinstance(fact.get(name), str) or not plain(fact[name]).strip():
            return f"has no text under {name!r}"
    for name, least in _NUMBERS.items():
        number = fact.get(name)
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < least):
            return f"has {name} {shown(number)}, which is not an integer of at least {least}"
    for name in _NEAR:
        if not isinstance(fact.get(name), str | None):
            return f"has {name} {shown(fact[name])}, which is not a string"
    return None


def keeps(answer: str, fact: Fact) -> bool:
    """Whether a transcription passes a test.

    Args:
        fact: a row of the benchmark's .jsonl files: its type, and the fields that the type needs.
    """
    return _RULES[fact["type"]](answer, fact)


def plain(text: str) -> str:
    """A text without emphasis marks, with single blanks and plain quotes and dashes."""
    for pattern, put in _PLAIN:
        text = re.sub(pattern, put, text)
    return unicodedata.normalize("NFC", text).translate(_SIGNS)


def _present(answer: str, fact: Fact) -> bool:
    text, page = plain(fact["text"]), plain(answer)
    if not fact.get("case_sensitive", True):
        text, page = text.lower(), page.lower()
    first, last = fact.get("first_n"), fact.get("last_n")
    if first or last:
        page = (page[:first] if first else "") + (page[-last:] if last else "")
    most = fact.get("max_diffs") or 0
    return len(page) >= len(text) - most and stands_in(text, page, 1.0 - most / len(text))


def _order(answer: str, fact: Fact) -> bool:
    most, texts = fact.get("max_diffs") or 0, [plain(fact[name]) for name in ("before", "after")]
    page = shortened(plain(answer), 2 * (max(map(len, texts)) + most))
    before, after = (near_places(text, page, most) for text in texts)
    return bool(before and after) and min(before) < max(after)


def _baseline(answer: str, fact: Fact) -> bool:
    """Whether a transcription is not empty, does not end in repetitions, and has no characters of scripts that do not
    occur in the documents; for a blank page, whether it is short enough."""
    counted = re.sub(r"!\[.*?\]\(.*?\)", "", answer) if fact.get("max_length_skips_image_alt_tags") else answer
    if fact.get("max_length") is not None:  # a blank page
        return sum(map(str.isalnum, counted)) <= fact["max_length"]
    if not any(map(str.isalnum, answer)):
        return False
    text, most = re.sub(r"\s+", " ", answer), fact.get("max_repeats")
    if any(_repeats(text, size) > (30 if most is None else most) for size in range(1, _LONGEST + 1)):
        return False
    return not (fact.get("check_disallowed_characters", True) and _FOREIGN.search(answer))


def _repeats(text: str, size: int) -> int:
    """How many times in a row the last `size` characters of a text occur at its end."""
    count, last = 0, text[-size:]
    while (at := len(text) - size * (count + 1)) >= 0 and text[at : at + size] == last:
        count += 1
    return count


def _math(answer: str, fact: Fact) -> bool:
    patterns = _FORMULAS[:2] if fact.get("ignore_dollar_delimited") else _FORMULAS
    for pattern in patterns:
        if fact["math"] in (found.strip() for found in re.findall(pattern, answer, re.DOTALL)):
            return True
        answer = re.sub(pattern, "", answer, flags=re.DOTALL)
    return False


def _table(answer: str, fact: Fact) -> bool:
    in_html = html_tables(answer)
    if in_html is None:
        return False
    tables = [*([] if fact.get("ignore_markdown_tables") else markdown_tables(answer)), *in_html]
    return any(_fits(table, row, column, fact) for table in tables for row, column in _found(table, fact))


def _found(table: Table, fact: Fact) -> Iterable[tuple[int, int]]:
    cell = plain(fact["cell"])
    for row, texts in enumerate(table.rows):
        for column, text in enumerate(texts):
            if _alike(cell, text, fact):
                yield row, column


def _alike(wanted: str, text: str, fact: Fact) -> bool:
    least = max(0.5, 1.0 - (fact.get("max_diffs") or 0) / max(len(wanted), 1))
    return ratio(wanted, plain(text)) >= least


def _fits(table: Table, row: int, column: int, fact: Fact) -> bool:
    """Whether a cell has the neighbours and heads of the test; neighbours beyond the table's edge are ignored."""
    rows = table.rows
    for name, down, right in (("up", -1, 0), ("down", 1, 0), ("left", 0, -1), ("right", 0, 1)):
        wanted, at, across = plain(fact.get(name) or ""), row + down, column + right
        inside = 0 <= at < len(rows) and 0 <= across < len(rows[0])
        if wanted and inside and not _alike(wanted, rows[at][across], fact):
            return False
    above = [rows[number][column] for number in range(row)]
    heads = [text for number, text in enumerate(above) if number in table.head_rows and text.strip()]
    if not _headed(fact.get("top_heading"), [*table.above.get(column, []), *heads], above, fact):
        return False
    before = rows[row][:column]
    heads = [text for number, text in enumerate(before) if number in table.head_columns and text.strip()]
    return _headed(fact.get("left_heading"), [*table.beside.get(row, []), *heads], before, fact)


def _headed(heading: str | None, heads: list[str], others: list[str], fact: Fact) -> bool:
    """Whether one of the heads is the test's heading. If no head shares any character with it, other cells in the same
    direction are compared, too."""
    wanted = plain(heading or "")
    if not wanted:
        return True
    if any(ratio(wanted, plain(text)) for text in heads):
        others = []
    return any(_alike(wanted, text, fact) for text in (*heads, *(text for text in others if text.strip())))


_RULES = {
    "present": _present,
    "absent": lambda answer, fact: not _present(answer, fact),
    "order": _order,
    "baseline": _baseline,
    "math": _math,
    "table": _table,
}
