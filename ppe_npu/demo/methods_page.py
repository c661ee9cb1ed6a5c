"""The page about runs of many methods: tables, and sentences that are computed from their numbers, for any outcome."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ppe_npu.demo.findings import EXTENT
from ppe_npu.evaluation.statistics import wilson
from ppe_npu.evaluation.tables import markdown

RowResult = dict[str, Any]  # what demo.methods.run_job returns
CONTROLS = ("random", "uniform", "avg_pool", "smaller picture")
_ALIKE = 0.02  # differences of at most this much are called no difference


def measured(results: Sequence[RowResult], command: str) -> str:
    """The page: tables of accuracies and costs, and sentences about the accuracies."""
    parts = []
    for tuned in sorted({one["tuned"] for one in results}):
        own = [one for one in results if one["tuned"] == tuned]
        shares = _shares(own)
        seeds = sorted({one["seed"] for one in own})
        head = "After fine-tuning" if tuned else "Training-free"
        spread = (
            f"in brackets the smallest and the largest of {len(seeds)} seeds"
            if len(seeds) > 1
            else "one seed; in brackets the 95 % Wilson interval of its samples"
        )
        parts.append(f"### {head}\n\nAccuracy over all questions, and over bars and counts alone ({spread}).\n")
        parts.append(_accuracies(own, shares))
        parts.append("\n".join(says(own, shares, head)))
    costs = _costs(results, _shares(results))
    return "\n\n".join([*parts, *([costs] if costs else []), f"Made by `{command}`.", ""])


def _shares(results: Sequence[RowResult]) -> list[float]:
    """The kept shares at which methods were asked, from the largest."""
    return sorted({one["share"] for one in results if one["row"] != "dense"}, reverse=True)


def _kinds(results: Sequence[RowResult]) -> list[tuple[str, str]]:
    """(method, positions) in order of appearance."""
    return list(dict.fromkeys((one["row"], one["positions"]) for one in results))


def _of(results: Sequence[RowResult], name: str, positions: str, share: float | None) -> list[RowResult]:
    found = [one for one in results if (one["row"], one["positions"]) == (name, positions)]
    return sorted(
        (one for one in found if share is None or name == "dense" or one["share"] == share), key=lambda one: one["seed"]
    )


def overall(one: RowResult) -> float:
    return one["accuracy"]["accuracy"]


def extent(one: RowResult) -> float:
    return statistics.mean(one["types"][kind]["accuracy"] for kind in EXTENT)


def _accuracies(results: Sequence[RowResult], shares: Sequence[float]) -> str:
    head = ["method", "positions", *(f"{share:.0%}" for share in shares), *(f"bars {share:.0%}" for share in shares)]
    lines = []
    for name, positions in _kinds(results):
        cells = [_cell(_of(results, name, positions, share), overall) for share in shares]
        cells += [_cell(_of(results, name, positions, share), extent, brief=True) for share in shares]
        lines.append([name, positions.replace("keep_one", "one") or "-", *cells])
    return markdown(head, lines)


def _cell(runs: Sequence[RowResult], value: Callable[[RowResult], float], brief: bool = False) -> str:
    """The mean over seeds with their range; for one seed, the Wilson interval over its samples."""
    if not runs:
        return "-"
    values = [value(one) for one in runs]
    if brief:
        return f"{statistics.mean(values):.2f}"
    low, high = (min(values), max(values)) if len(values) > 1 else wilson(values[0], runs[0]["accuracy"]["count"])
    return f"{statistics.mean(values):.3f} ({short(low)}–{short(high)})"


def short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"


def says(results: Sequence[RowResult], shares: Sequence[float], head: str) -> list[str]:
    """One list item per share: the best method against the best control, and PPE's positions against one position."""
    lines = []
    methods = [name for name, positions in _kinds(results) if positions == "ppe" and name not in CONTROLS]
    for share in shares:
        best = {
            (name, positions): statistics.mean(map(overall, runs))
            for name, positions in _kinds(results)
            if name != "dense" and (runs := _of(results, name, positions, share))
        }
        controls = {key: value for key, value in best.items() if key[0] in CONTROLS}
        ours = {key: value for key, value in best.items() if key[0] not in CONTROLS}
        if not ours or not controls:
            continue
        top, control = max(ours, key=ours.__getitem__), max(controls, key=controls.__getitem__)
        beat = sorted({name for (name, _), value in ours.items() if value > controls[control] + _ALIKE})
        gains = {
            name: [
                ppe - one
                for ppe, one in zip(*(map(overall, _of(results, name, how, share)) for how in ("ppe", "keep_one")))
            ]
            for name in methods
        }
        ahead = [name for name, values in gains.items() if values and min(values) > _ALIKE]
        behind = [name for name, values in gains.items() if values and max(values) < -_ALIKE]
        lines.append(
            f"- {head}, {share:.0%} kept: the best is {_named(top)} at {ours[top]:.3f}, the best control "
            f"{_named(control)} at {controls[control]:.3f}. {len(beat)} of {len(methods)} methods are ahead of every "
            f"control by more than {_ALIKE:.2f}{': ' + ', '.join(beat) if beat else ''}. PPE's positions are ahead of "
            f"one position on every seed with {len(ahead)} of {len(methods)} methods, behind with {len(behind)}"
            f"{' (' + ', '.join(behind) + ')' if behind else ''}."
        )
    return lines


def _named(key: tuple[str, str]) -> str:
    name, positions = key
    return name + {"ppe": " with PPE", "keep_one": " with one position", "": ""}[positions]


def _costs(results: Sequence[RowResult], shares: Sequence[float]) -> str:
    """A table of each method with PPE: per share, its work as a fraction of its prefill, and its prefill over the dense
    one's. Empty if no costs were measured."""
    rows = []
    for name, positions in _kinds(results):
        runs = [one for one in results if (one["row"], one["positions"]) == (name, positions) and "selection" in one]
        if positions != "ppe" or not runs:
            continue
        cells = []
        for share in shares:
            own = [one for one in runs if one["share"] == share]
            cells += [f"{statistics.mean(one['costs']['tokens_after'] for one in own):.1f}" if own else "-"]
            cells += [f"{statistics.mean(one['selection'] for one in own):.0%}" if own else "-"]
            cells += [f"{statistics.mean(one['prefill'] for one in own):.2f}" if own else "-"]
        rows.append([name, *cells])
    if not rows:
        return ""
    head = ["method", *(f"{part} {share:.0%}" for share in shares for part in ("tokens", "work", "prefill"))]
    text = (
        "### Costs\n\nTokens: visual tokens of a picture, averaged over the decoder layers. Work: the share of the "
        "prefill time in which tokens are chosen, merged and placed. Prefill: its time over the dense one's, measured "
        "alternately in one process. The model is tiny (36 tokens per picture, two layers of width 128), so these "
        "shares show which methods cost more than others, not what they cost in a large model."
    )
    return f"{text}\n\n{markdown(head, rows)}"
