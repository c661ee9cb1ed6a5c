"""Text spotting: words and their boxes, scored by the rules of the Robust Reading Competition.

Source: OCRBench v2 (Fu et al. 2025, arXiv 2501.00321), eval_scripts/spotting_metric.py, and the competition's script
for end-to-end reading that it calls (E2E_iou_1_1.py); all boxes are axis-aligned there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ppe_npu.evaluation.metrics.boxes import overlap

Word = tuple[tuple[int, int, int, int], str]  # (left, top, right, bottom), text
_SIDE = 1000  # coordinates are thousandths
_FREE = "###"  # marks an illegible text; words found there are ignored
_EDGE = "!?.:,*\"()·[]/'"  # one such character at each end of a text may be left out
_GROUP = re.compile(r"[\[(]([^\[\]()]*)[\])]")


def spotted(answer: str) -> list[Word]:
    """The words that an answer lists as (left, top, right, bottom, text), without duplicates."""
    try:
        listed = ast.literal_eval(answer)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        items: Iterable[Any] = (found.split(",", 4) for found in _GROUP.findall(answer))
    else:
        items = listed if isinstance(listed, (list, tuple)) else ()
    words = (_word(item) for item in items if isinstance(item, (list, tuple)) and len(item) >= 5)
    return [word for word in dict.fromkeys(words) if word is not None]


def _word(item: Sequence[Any]) -> Word | None:
    try:
        left, top, right, bottom = (int(str(value).strip()) for value in item[:4])
    except ValueError:
        return None
    if not all(0 <= value <= _SIDE for value in (left, top, right, bottom)):
        return None
    return (left, top, right, bottom), str(item[4]).replace("\n", "").strip().strip('"').strip("'")


def spotting_score(answer: str, boxes: Sequence[Sequence[int]], texts: Sequence[str]) -> float:
    """The harmonic mean of precision and recall. A word is right if the intersection over union of its box exceeds 0.5
    and its text is the same except for case and one punctuation mark at each end.

    Args:
        boxes: x, y, x, y, ... of each word's corners. texts: the texts of these words.
    """
    said = [word for word in spotted(answer) if word[0][0] < word[0][2] and word[0][1] < word[0][3]]
    right = [(_bounds(box), _unquoted(text)) for box, text in zip(boxes, texts)]
    free = [box for box, text in right if text == _FREE]
    right = [word for word in right if word[1] != _FREE]
    said = [word for word in said if not any(_inside(word[0], box) > 0.5 for box in free)]
    if not said or not right:
        return 0.0
    correct, taken = 0, set()
    for box, text in right:
        for number, (other, read) in enumerate(said):
            if number not in taken and overlap(box, other) > 0.5:
                taken.add(number)
                correct += _same(text.upper(), _unquoted(read).upper())
                break
    return 2.0 * correct / (len(said) + len(right))


def _bounds(corners: Sequence[int]) -> tuple[int, int, int, int]:
    across, down = corners[0::2], corners[1::2]
    return min(across), min(down), max(across), max(down)


def _unquoted(text: str) -> str:
    quoted = re.fullmatch(r'\s*"(.*)"\s*', text)
    return quoted[1].replace("\\\\", "\\").replace('\\"', '"') if quoted else text


def _inside(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """The fraction of a box that lies inside another one."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    return max(wide, 0) * max(high, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


def _same(right: str, said: str) -> bool:
    forms = {right}
    if right and right[0] in _EDGE:
        forms.add(right[1:])
    if right and right[-1] in _EDGE:
        forms |= {form[:-1] for form in forms}
    return said in forms
