"""Shares of whole numbers, computed exactly."""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any


@cache
def fraction(share: float) -> Fraction:
    """The number that was meant by a float, with a denominator of at most a million: 0.07 is 7 hundredths."""
    return Fraction(share).limit_denominator(10**6)


def part_of(count: int, share: float, rule: Callable[[Any], int] = math.ceil, floats: bool = False) -> int:
    """count * share, made whole by `rule`: exactly (7 of 100 for 0.07), or if `floats` as published code computes it,
    where 0.07 * 100 is slightly above 7 and 0.29 * 100 slightly below 29."""
    return rule(count * (share if floats else fraction(share)))
