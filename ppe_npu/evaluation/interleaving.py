"""What methods cost, measured in turns: A B C, B C A, ... on the same prompts, so that an hour that is slow is slow for
all of them; and what may be said of the numbers.

Runs that follow each other measure the hour. Here a method is compared with the reference prompt by prompt and round by
round, by the median of the ratios, which a few disturbed rounds do not move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ppe_npu.errors import InputError
from ppe_npu.evaluation.statistics import interval, resamples

ROUNDS, PROMPTS = 5, 8  # of a pass, where the user says nothing
_DRAWS = 2000
Times = Sequence[Sequence[float]]  # [rounds][prompts], seconds


def in_turns(
    runners: Mapping[str, Callable[[int], Any]],
    prompts: int,
    rounds: int = ROUNDS,
    bar: Callable[[], None] = lambda: None,
) -> dict[str, list[list[Any]]]:
    """{name: [rounds][prompts] of what its runner gave}, after one round that is not counted (it loads kernels).

    Within a round every prompt is answered by all methods, one right after the other; who begins moves on by one.

    Args:
        runners: name -> a function that answers prompt number 0, 1, ... once.
        bar: called after each round.

    Raises:
        InputError: no prompts, or no rounds.
    """
    if prompts < 1 or rounds < 1:
        raise InputError(f"{prompts} prompts in {rounds} rounds measure nothing: give at least 1 of each")
    names = list(runners)
    found: dict[str, list[list[Any]]] = {name: [[None] * prompts for _ in range(rounds)] for name in names}
    for turn in range(-1, rounds):
        for prompt in range(prompts):
            first = (turn + prompt) % len(names)
            for name in names[first:] + names[:first]:
                given = runners[name](prompt)
                if turn >= 0:
                    found[name][turn][prompt] = given
        bar()
    return found


def against(own: Times, reference: Times, seed: int = 0) -> dict[str, Any]:
    """How long a method takes beside a reference that was measured in turns with it.

    Returns:
        {"median" (seconds), "quartiles" [2], "ratio" (the median of own / reference over rounds and prompts), "low",
        "high" (95 %: bootstrap over prompts and, within them, rounds), "scatter" (half the distance between the
        quartiles of the ratios), "told" (whether the difference from 1 is larger than the scatter and 1 outside of the
        interval)}.

    Raises:
        InputError: not the same rounds and prompts.
    """
    times, others = np.asarray(own, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if times.shape != others.shape or times.ndim != 2 or not times.size:
        raise InputError(f"times of shape {times.shape} and {others.shape} were not measured in turns: measure again")
    ratios = times / others
    ratio = float(np.median(ratios))
    low, high = interval(_medians(ratios, seed))
    below, above = np.quantile(ratios, [0.25, 0.75])
    scatter = float(above - below) / 2
    told = not low <= 1 <= high and abs(ratio - 1) > scatter
    quartiles = [float(value) for value in np.quantile(times, [0.25, 0.75])]
    found = {"median": float(np.median(times)), "quartiles": quartiles, "ratio": ratio, "low": low, "high": high}
    return {**found, "scatter": scatter, "told": bool(told)}


def _medians(ratios: np.ndarray, seed: int) -> np.ndarray:
    """[_DRAWS] medians of resampled ratios [rounds, prompts]: prompts are drawn, and of each drawn one its rounds, as
    rounds of one prompt are more alike than prompts."""
    rounds, prompts = ratios.shape
    columns = np.concatenate(list(resamples(prompts, _DRAWS, seed)))
    rows = np.concatenate(list(resamples(prompts * rounds, _DRAWS, seed + 1))) % rounds
    return np.median(ratios[rows.reshape(_DRAWS, rounds, prompts), columns[:, None, :]], axis=(1, 2))


def summed_up(measured: Mapping[str, Mapping[str, Times]], reference: str) -> dict[str, dict[str, Any]]:
    """{name: {quantity: against()}} of {name: {quantity: times}}; the reference beside itself has ratio 1."""
    base = measured[reference]
    return {name: {key: against(times[key], base[key]) for key in times} for name, times in measured.items()}
