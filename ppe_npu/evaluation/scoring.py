"""Scores of answers that a model has just given, and of stored ones that the benchmark's code as it is now has not yet
scored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ppe_npu.errors import counted
from ppe_npu.evaluation.identity import Unreadable
from ppe_npu.evaluation.own_code import called
from ppe_npu.evaluation.results import score
from ppe_npu.evaluation.rows import FAULTS, Row, fault_of, judged_anew
from ppe_npu.utils.escape import printable


def judged(benchmark: Any, answer: str, sample: Any) -> Row:
    """{"score"} of an answer; if the benchmark's code fails, {"score": 0.0, "error"}."""
    try:
        return {"score": score(benchmark, answer, sample)}
    except FAULTS as error:  # raised by the benchmark's own code; its other samples must still be judged
        return {"score": 0.0, "error": fault_of(error)}


def renewed(
    benchmark: Any, rows: Sequence[Row], sample_of: Callable[[Any], Any], differs: bool | None, title: str
) -> list[Row]:
    """The stored rows that a run continues with: all that have an answer. An answer that other code has scored is
    scored anew, as is one that could not be scored; of the first a line is printed.

    Args:
        sample_of: index -> sample.
        differs: whether the code that scored the rows differs from the benchmark's; None: unknown.
        title: the run's name in that line.
    """
    kept, again, changed = [], 0, 0
    for row in rows:
        failed = "error" in row
        if failed and "new_tokens" not in row:  # there is no answer
            continue
        sample = sample_of(row["index"]) if failed or differs is not False else None
        if sample is None or isinstance(sample, Unreadable):
            kept += [] if failed else [row]
            continue
        new = judged_anew(row, judged(benchmark, row["answer"], sample))
        again, changed = again + 1, changed + (new["score"] != row["score"])
        kept.append(row if new == row else new)
    if again and (differs or (differs is None and changed)):
        scores = f"{counted(changed, 'score')} differ{'s' * (changed == 1)}"
        what = f"{counted(again, 'stored answer')} {'was' if again == 1 else 'were'} scored anew ({scores})"
        told = printable(f"{called(benchmark)}, {title}")
        print(f"ppe-npu: {told}: the benchmark's code has changed: {what}", file=sys.stderr)
    return kept
