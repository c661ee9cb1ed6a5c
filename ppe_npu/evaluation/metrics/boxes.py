"""Boxes and points in an answer, as the families write them; overlap of boxes (for Acc@0.5) and hits.

Families use different units: Qwen2-VL and Qwen3-VL write thousandths of a side, Qwen2.5-VL pixels of the picture as the
model saw it. Here all are converted to fractions of the picture's sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

THOUSANDTHS = 1000.0
PIXELS = frozenset({"qwen2_5_vl"})  # families that write pixels of the picture as they saw it
_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])-?(?:\d+(?:\.\d+)?|\.\d+)")  # not a number within a name, such as x1
_N = rf"\s*{_NUMBER.pattern}\s*"
# Numbers in brackets, which take precedence over others in the text: first [1, 2, 3, 4] or (1,2),(3,4), then (1, 2).
_BRACKETED = [
    re.compile(rf"[\[(]{_N},{_N}(?:,|[\])]\s*,?\s*[\[(]){_N},{_N}[\])]"),
    re.compile(rf"[\[(]{_N},{_N}[\])]"),
]


def written(answer: str) -> tuple[float, ...]:
    """The numbers of the first box in an answer, else of the first point; () if there is neither.

    "bbox_2d": [1, 2, 3, 4], "point_2d": [1, 2], (1,2),(3,4), [[1, 2, 3, 4]] and four plain numbers are recognized.
    """
    named = re.search(r"(?:bbox(?:_2d)?|point(?:_2d)?)\W*?\[([^\]]*)", answer)
    plain = re.sub(r"<\|[^|]*\|>|\b[a-zA-Z_]+_?2d\b", " ", answer)
    bracketed = next((found[0] for form in _BRACKETED if (found := form.search(plain))), plain)
    text = named[1] if named else bracketed
    numbers = tuple(float(number) for number in _NUMBER.findall(text))
    return numbers[:4] if len(numbers) >= 4 else numbers[:2] if len(numbers) >= 2 else ()


def shares(numbers: Sequence[float], family: str, seen: tuple[int, int]) -> tuple[float, ...]:
    """Numbers of a box or a point as fractions of the picture's width and height.

    Args:
        family: the model's type (qwen2_5_vl).
        seen: width and height of the picture as the model saw it, in pixels.
    """
    width, height = seen if family in PIXELS else (THOUSANDTHS, THOUSANDTHS)
    return tuple(number / (width, height)[at % 2] for at, number in enumerate(numbers))


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0.0 if one of them has no area or lacks four sides."""
    if min(len(first), len(second)) < 4:
        return 0.0
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right, bottom = min(first[2], second[2]), min(first[3], second[3])
    inside = max(right - left, 0.0) * max(bottom - top, 0.0)
    areas = [max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0) for box in (first, second)]
    union = sum(areas) - inside
    return inside / union if union > 0 else 0.0


def hits(said: Sequence[float], target: Sequence[float]) -> bool:
    """Whether a point, or the centre of a box, lies in the target box or on its edge."""
    x, y = ((said[0] + said[2]) / 2, (said[1] + said[3]) / 2) if len(said) == 4 else said
    return target[0] <= x <= target[2] and target[1] <= y <= target[3]
