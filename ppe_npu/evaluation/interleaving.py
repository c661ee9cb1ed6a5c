"""The cost of methods, measured interleaved: A B C, B C A, ... on the same prompts, so that a slow hour of the machine
slows all of them alike; and the statistics that decide which differences are reported.

Times of runs made one after the other depend on the hour of each. Here a method is compared with the reference prompt
by prompt and round by round, by the median of the ratios, which a few disturbed rounds do not change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ppe_npu.errors import InputError
from ppe_npu.evaluation.statistics import interval, resamples

ROUNDS, PROMPTS = 5, 8  # defaults of a pass
MOST = 12  # times the requested rounds, at most, on a busy machine
LONG = 120.0  # seconds; no further rounds after this time and three times that of the requested rounds
_CLOSE = 0.03  # relative error within which the ratio of two methods must be known
_ERRORS = 2.5  # standard errors of the ratio that must fit into _CLOSE: one ratio in a hundred is further off
_DRAWS = 2000
Times = Sequence[Sequence[float]]  # [rounds][prompts], seconds


def in_turns(
    runners: Mapping[str, Callable[[int], Any]],
    prompts: int,
    rounds: int = ROUNDS,
    enough: Callable[[Mapping[str, list[list[Any]]]], bool] = lambda found: True,
    least: int | None = None,
) -> dict[str, list[list[Any]]]:
    """{name: [rounds][prompts] results of its runner}; every round counts, from the first one on.

    Within a round all methods answer each prompt, one right after the other; the first one changes with every prompt.

    Args:
        runners: name -> a function that answers prompt number 0, 1, ... once. It must have answered each of them
            before, because a first answer also loads kernels.
        enough: called with the results after `rounds` rounds; while it returns False there are further rounds, at most
            MOST * rounds in all, and none after LONG seconds and three times as long as the first `rounds` took.
        least: the fewest rounds: after these no round begins once LONG seconds have passed; None: `rounds`.

    Raises:
        InputError: no prompts, or no rounds.
    """
    if prompts < 1 or rounds < 1:
        raise InputError(f"{prompts} prompts in {rounds} rounds measure nothing: give at least 1 of each")
    names = list(runners)
    found: dict[str, list[list[Any]]] = {name: [] for name in names}
    started, asked = time.monotonic(), 0.0
    for turn in range(MOST * rounds):
        spent = time.monotonic() - started
        asked = spent if turn == rounds else asked
        late = least is not None and turn >= least and spent > LONG
        if late or (turn >= rounds and (enough(found) or spent > max(LONG, 3 * asked))):
            break
        for turns in found.values():
            turns.append([None] * prompts)
        for prompt in range(prompts):
            first = (turn + prompt) % len(names)
            for name in names[first:] + names[:first]:
                found[name][turn][prompt] = runners[name](prompt)
    return found


def against(own: Times, reference: Times) -> dict[str, Any]:
    """Compare a method's times with those of a reference that was interleaved with it.

    Returns:
        {"median" (seconds), "quartiles" [2], "ratio" (the median of own / reference over rounds and prompts), "low",
        "high" (95 %: bootstrap over prompts and, within them, rounds), "scatter" (half the distance between the
        quartiles of the ratios), "told" (whether the ratio's difference from 1 is reported: it is larger than the
        scatter, and 1 lies outside the interval)}.

    Raises:
        InputError: the two do not have the same rounds and prompts.
    """
    times, others = np.asarray(own, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if times.shape != others.shape or times.ndim != 2 or not times.size:
        raise InputError(f"times of shapes {times.shape} and {others.shape} were not interleaved: measure again")
    ratios = times / others
    ratio = float(np.median(ratios))
    low, high = interval(_medians(ratios))
    below, above = np.quantile(ratios, [0.25, 0.75])
    scatter = float(above - below) / 2
    told = not low <= 1 <= high and abs(ratio - 1) > scatter
    return {**middle(own), "ratio": ratio, "low": low, "high": high, "scatter": scatter, "told": bool(told)}


def middle(times: Times) -> dict[str, Any]:
    """{"median", "quartiles" [2]} of the times over all rounds and prompts."""
    low, median, high = (float(value) for value in np.quantile(np.asarray(times), [0.25, 0.5, 0.75]))
    return {"median": median, "quartiles": [low, high]}


def settled(own: Times, reference: Times) -> bool:
    """Whether these rounds determine a method's ratio to within 3 %, judged by the standard error of its median, which
    is estimated from the scatter of each prompt's ratios between rounds."""
    ratios = np.log(np.asarray(own, dtype=np.float64) / np.asarray(reference, dtype=np.float64))
    rounds = len(ratios)
    if rounds < 2:
        return True
    # The quartiles of a normal distribution are 1.349 standard deviations apart; each prompt's median is subtracted.
    below, above = np.quantile(ratios - np.median(ratios, axis=0), [0.25, 0.75])
    deviation = (above - below) / 1.349 * np.sqrt(rounds / (rounds - 1))
    return bool(_ERRORS * np.sqrt(np.pi / 2) * deviation / np.sqrt(ratios.size) <= _CLOSE)


def _medians(ratios: np.ndarray) -> np.ndarray:
    """[_DRAWS] medians of resampled `ratios` [rounds, prompts]: prompts are drawn, then rounds within each drawn one,
    because rounds of one prompt are more alike than prompts."""
    rounds, prompts = ratios.shape
    columns = np.concatenate(list(resamples(prompts, _DRAWS)))
    rows = np.concatenate(list(resamples(prompts * rounds, _DRAWS, seed=1))) % rounds
    return np.median(ratios[rows.reshape(_DRAWS, rounds, prompts), columns[:, None, :]], axis=(1, 2))


def summed_up(measured: Mapping[str, Mapping[str, Times]], reference: str) -> dict[str, dict[str, Any]]:
    """{name: {quantity: times}} -> {name: {quantity: against()}}; the reference itself has ratio 1."""
    base = measured[reference]
    return {name: {key: against(times[key], base[key]) for key in times} for name, times in measured.items()}
