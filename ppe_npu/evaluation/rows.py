"""A line of predictions.jsonl: made of a sample and its answer, and checked when it is read again.

Lines outlive the process that wrote them: they are cut by kills and full disks, edited, copied from other runs. So each
line carries a checksum of its content, and its question is compared with the benchmark's. The first edition wrote no
sums: a file in which no line has one can be read, and gets sums when its run is continued.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, UserError, first_line, shown
from ppe_npu.files import check_regular
from ppe_npu.utils.reading import checksum, is_number, json_or_none

Row = dict[str, Any]
FAULTS = (Exception, SystemExit)  # raised by a benchmark's own code, these are recorded as failures of a sample
QUESTION = ("index", "type", "prompt", "GT")
BOM = b"\xef\xbb\xbf"  # byte order mark, which some editors put before a text; it belongs to no line
_SUM = "sum"
_NO_SUM = "was changed since it was written (its checksum is gone)"
_MEASURED = ("prefill_seconds", "seconds", "new_tokens", "batch")
_MAYBE = ("tokens_before", "tokens_after", "prompt_kv_bytes", "kv_bytes")  # rows of an earlier version may lack these


def question(sample: Any) -> Row:
    """The QUESTION fields of a sample as JSON values: a tuple becomes a list, a NumPy number becomes a Python number.

    Raises:
        InputError: the index is neither text nor whole number; or a value cannot be written as JSON in UTF-8.
    """
    index = sample.get("index")
    if not is_key(index):
        raise InputError(f"index {shown(index)} is a {type(index).__name__}: use a str or int")
    return {key: _plain(key, sample.get(key)) for key in QUESTION}


def _plain(key: str, value: Any) -> Any:
    try:
        text = json.dumps(value, ensure_ascii=False, default=_scalar)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{key} contains a lone surrogate (half a character): correct the text") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{key} cannot be written as JSON ({first_line(error)}): use texts and numbers") from error
    return json.loads(text)


def _scalar(value: Any) -> Any:
    """A scalar of NumPy or torch as a Python number."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"it holds a {type(value).__name__}")


def fault_of(error: BaseException) -> str:
    """An error in one line: its class and the first line of its message; a UserError's message says all by itself."""
    return first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def signed(row: Mapping[str, Any]) -> Row:
    """A row with the checksum of its content."""
    plain = json.loads(json.dumps(row, default=_scalar))
    return {**plain, _SUM: checksum(plain)}


def judged_anew(row: Mapping[str, Any], judged: Mapping[str, Any]) -> Row:
    """A row with another "score" and, if it could not be scored, "error"."""
    kept = {key: value for key, value in row.items() if key not in ("score", "error", _SUM)}
    return signed({**kept, **judged})


def encode_rows(rows: Any) -> bytes:
    """Rows as lines of JSON. A lone surrogate, which UTF-8 cannot encode, is written as a JSON escape."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "backslashreplace")


def parse(line: bytes) -> tuple[Row, None] | tuple[None, str]:
    """(row, None) for a line's bytes, or (None, what is wrong with the line)."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON ({first_line(error)})"
    if not isinstance(row, dict):
        return None, f"is a {type(row).__name__}, not an object of names and values"
    return row, None


def has_sums(folder: Path) -> bool:
    """Whether all lines of a run must have sums: if its settings name a protocol, which the first edition did not."""
    settings = json_or_none(folder / "settings.json")
    return isinstance(settings, dict) and "protocol" in settings


def with_sums(data: bytes) -> bytes:
    """Add a sum to every line of the first edition's file; a file in which any line has a sum is returned unchanged."""
    lines = data.removeprefix(BOM).split(b"\n")
    rows = [parse(line)[0] for line in lines]
    if any(row is not None and _SUM in row for row in rows):
        return data
    return b"\n".join(
        line if row is None else encode_rows([signed(row)]).removesuffix(b"\n") for line, row in zip(lines, rows)
    )


def stored_rows(path: Path, wrong: Callable[[Row], str | None]) -> Iterator[Row]:
    """The rows of a predictions.jsonl, in order. The file is not changed.

    Args:
        wrong: returns what keeps a row from being used, or None; the sum is checked here.

    Raises:
        InputError: a line is wrong, or was changed since it was written; the message names file and line.
    """
    check_regular(path)
    summed, bare = has_sums(path.parent), None
    for number, line in enumerate(path.read_bytes().removeprefix(BOM).split(b"\n"), 1):
        if not line.strip():
            continue
        row, reason = parse(line)
        reason = reason or wrong(row)
        if not reason:
            summed, bare = summed or _SUM in row, bare if _SUM in row else bare or number
            if summed and bare:
                number, reason = bare, _NO_SUM
            elif summed:
                reason = _altered(row)
        if reason:
            raise InputError(f"{path} line {number} {reason}: run the evaluation again")
        yield row


def read_scores(path: Path) -> dict[int | str, float | None]:
    """{index: score} of a predictions.jsonl; if a sample has two lines, the first counts.

    Raises:
        InputError: as stored_rows; or a line has no score.
    """
    scores: dict[int | str, float | None] = {}
    for row in stored_rows(path, _unscored):
        scores.setdefault(row["index"], row["score"])
    return scores


def is_key(value: Any) -> bool:
    """Whether a value can be a sample's index."""
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _unscored(row: Row) -> str | None:
    if not is_key(row.get("index")) or "score" not in row:
        return "has no index or no score"
    score = row["score"]
    return None if score is None or (_measure(score) and score <= 1) else f"has the score {shown(score)}, not in [0, 1]"


def unshowable(row: Row) -> str | None:
    """What keeps a row, even one of an earlier edition, from being shown; None if nothing does."""
    lacking = [key for key in ("index", "answer", "score", "GT") if key not in row]
    if lacking:
        return f"has no {', '.join(lacking)}"
    if not isinstance(row["answer"], str) or not isinstance(row.get("error", ""), str):
        return "has an answer or an error that is not a string"
    return _unscored(row)


def row_fault(row: Row) -> str | None:
    """What keeps a row from being counted; None if nothing does."""
    lacking = [key for key in (*QUESTION, "answer", "score") if key not in row]
    if lacking:
        return f"has no {', '.join(lacking)}"
    if unshowable(row):
        return unshowable(row)
    wrong = [] if "error" in row else [key for key in _MEASURED if not _measure(row.get(key))]
    wrong += [key for key in (*_MAYBE, "peak_memory") if row.get(key) is not None and not _measure(row[key])]
    if wrong or not isinstance(row.get("warm", "error" in row), bool):
        return f"has no valid {', '.join(wrong) or 'warm'}"
    return _altered(row)


def _altered(row: Row) -> str | None:
    if _SUM not in row:
        return _NO_SUM
    changed = row[_SUM] != checksum({key: value for key, value in row.items() if key != _SUM})
    return "was changed since it was written (its checksum differs)" if changed else None


def _measure(value: Any) -> bool:
    return is_number(value) and value >= 0
