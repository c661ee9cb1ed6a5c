"""What methods cost, measured in turns: A B C, B C A, ... on the same prompts, so that an hour that is slow is slow for
all of them; and what may be said of the numbers.

Runs that follow each other measure the hour. Here a method is compared with the reference prompt by prompt and round by
round, by the median of the ratios, which a few disturbed rounds do not move.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ppe_npu.errors import InputError
from ppe_npu.evaluation.statistics import interval, resamples

ROUNDS, PROMPTS = 5, 8  # of a pass, where the user says nothing
MOST = 12  # times the rounds asked for, on a machine that is too busy for fewer
LONG = 120.0  # seconds: a pass that has taken as long, and three times what the rounds asked for took, has no more
_CLOSE = 0.03  # how near the ratio of two methods is to be known
_ERRORS = 2.5  # of its standard errors: of a hundred ratios one is further off
_DRAWS = 2000
Times = Sequence[Sequence[float]]  # [rounds][prompts], seconds


def in_turns(
    runners: Mapping[str, Callable[[int], Any]],
    prompts: int,
    rounds: int = ROUNDS,
    bar: Callable[[], None] = lambda: None,
    enough: Callable[[Mapping[str, list[list[Any]]]], bool] = lambda found: True,
    least: int | None = None,
    warm: bool = False,
) -> dict[str, list[list[Any]]]:
    """{name: [rounds][prompts] of what its runner gave}, after one round that is not counted (it loads kernels).

    Within a round every prompt is answered by all methods, one right after the other; who begins moves on by one.

    Args:
        runners: name -> a function that answers prompt number 0, 1, ... once.
        bar: called after each round.
        enough: of what there is after so many rounds, whether it will do; else there are more, at most MOST times,
            and none once they have taken LONG seconds and three times as long as the rounds asked for.
        least: rounds after which there are no more once LONG seconds are over; None: as many as were asked for.
        warm: whether every prompt was answered by all methods before, so that the first round counts.

    Raises:
        InputError: no prompts, or no rounds.
    """
    if prompts < 1 or rounds < 1:
        raise InputError(f"{prompts} prompts in {rounds} rounds measure nothing: give at least 1 of each")
    names = list(runners)
    found: dict[str, list[list[Any]]] = {name: [] for name in names}
    started, asked = time.monotonic(), 0.0
    for turn in range(0 if warm else -1, MOST * rounds):
        spent = time.monotonic() - started
        asked = spent if turn == rounds else asked
        late = least is not None and turn >= least and spent > LONG
        if late or (turn >= rounds and (enough(found) or spent > max(LONG, 3 * asked))):
            break
        for turns in found.values():
            turns += [[None] * prompts] if turn >= 0 else []
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
    return {**middle(own), "ratio": ratio, "low": low, "high": high, "scatter": scatter, "told": bool(told)}


def middle(times: Times) -> dict[str, Any]:
    """{"median", "quartiles" [2]} of all rounds and prompts."""
    low, median, high = (float(value) for value in np.quantile(np.asarray(times), [0.25, 0.5, 0.75]))
    return {"median": median, "quartiles": [low, high]}


def settled(own: Times, reference: Times) -> bool:
    """Whether so many rounds tell a method's ratio to within 3 %: by the standard error of its median, from how the
    ratios of one prompt scatter between rounds."""
    ratios = np.log(np.asarray(own, dtype=np.float64) / np.asarray(reference, dtype=np.float64))
    rounds = len(ratios)
    if rounds < 2:
        return True
    # 1.349 deviations lie between the quartiles of normal numbers; the prompts' own medians are taken off.
    below, above = np.quantile(ratios - np.median(ratios, axis=0), [0.25, 0.75])
    deviation = (above - below) / 1.349 * np.sqrt(rounds / (rounds - 1))
    return bool(_ERRORS * np.sqrt(np.pi / 2) * deviation / np.sqrt(ratios.size) <= _CLOSE)


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
