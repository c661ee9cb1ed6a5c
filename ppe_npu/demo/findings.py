"""The demo's findings in words that are computed from its numbers, so that they state only what the table shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppe_npu.demo import scenes

LAYOUT = ("row", "col")
EXTENT = ("barlen", "count")
CHANCE = {
    "shape": 1 / len(scenes.SHAPES),
    "row": 1 / scenes.GRID,
    "col": 1 / scenes.GRID,
    "barlen": 1 / len(scenes.BAR_LENGTHS),
    "count": 1 / len(scenes.DOT_COUNTS),
}
_LIMITS = (
    "What this shows: the mechanism. All methods merge the same groups of the same tokens of one dense model, are "
    "fine-tuned alike, and differ only in the positions that merged tokens keep (Chat-UniVi also in their order). What "
    "it does not show: anything about the accuracy of Qwen2.5-VL; this is not the paper's benchmark. The task was "
    "designed so that positions matter; the vision tower is random, frozen and sees windows of 2x2 tokens, so that "
    "features hold nearly no position; the model has well under a million parameters."
)
_ALIKE = 0.02  # differences of at most this much are called no difference


def accuracy(results: Sequence[dict[str, Any]], method: str, kinds: Sequence[str]) -> list[float]:
    """Per seed, the mean accuracy of a method over some question types."""
    runs = [result for result in results if result["name"] == method]
    return [sum(run["types"][kind]["accuracy"] for kind in kinds) / len(kinds) for run in runs]


def weak_seeds(results: Sequence[dict[str, Any]], gate: float) -> list[int]:
    """Seeds whose dense model does not reach `gate` on rows or on columns, so that comparisons on them mean nothing."""
    dense = [result for result in results if result["name"] == "dense"]
    return [run["seed"] for run in dense if min(run["types"][kind]["accuracy"] for kind in LAYOUT) < gate]


def paragraphs(results: Sequence[dict[str, Any]], gate: float) -> list[str]:
    """The report's text under its table."""
    out = []
    weak = weak_seeds(results, gate)
    if weak:
        out.append(
            f"**Not a fair comparison**: the dense model of seed {', '.join(map(str, weak))} stays below {gate} on "
            "rows or columns, so the table measures training, not compression."
        )
    names = list(dict.fromkeys(result["name"] for result in results))
    tails = list(dict.fromkeys(name.removeprefix("Chat-UniVi") for name in names if name.startswith("Chat-UniVi")))
    for tail in tails:
        out += [_layout(results, tail), _extent(results, tail)]
    out += [
        _listings(results, [name for name in names if name.startswith("PPE") and name.endswith(tail)]) for tail in tails
    ]
    chances = ", ".join(f"{kind} {value:.2f}" for kind, value in CHANCE.items())
    out.append(f"Chance: {chances}. Shape is the control: it needs no position.")
    out.append(_LIMITS)
    return [text for text in out if text]


def _layout(results: Sequence[dict[str, Any]], tail: str) -> str:
    names = ("dense", *(name + tail for name in ("Chat-UniVi", "keep-one", "PPE")))
    values = {name: accuracy(results, name, LAYOUT) for name in names}
    listed = ", ".join(f"{name} {_range(value)}" for name, value in values.items())
    ahead = min(p - c for p, c in zip(values[f"PPE{tail}"], values[f"Chat-UniVi{tail}"]))
    verdict = f"ahead of Chat-UniVi by at least {ahead:.2f}" if ahead > _ALIKE else "not ahead of Chat-UniVi"
    chance = CHANCE["row"]
    return f"Where things are (mean of row and col, chance {chance:.2f}): {listed}. PPE is {verdict} on every seed."


def _extent(results: Sequence[dict[str, Any]], tail: str) -> str:
    one, ppe = f"keep-one{tail}", f"PPE{tail}"
    parts = []
    for kind in ("shape", *LAYOUT, *EXTENT):
        gains = [b - a for a, b in zip(accuracy(results, one, [kind]), accuracy(results, ppe, [kind]))]
        word = _verdict(min(gains), max(gains))
        parts.append(f"{kind} {_signed(gains)} ({word})")
    listed = ", ".join(parts)
    rule = f"A difference of at most {_ALIKE:.2f} counts as none."
    return f"What K > 1 positions add over one (PPE{tail} minus keep-one{tail}): {listed}. {rule}"


def _verdict(least: float, most: float) -> str:
    """The verdict that follows from the smallest and the largest gain over all seeds."""
    if least > _ALIKE:
        return "ahead"
    if most < -_ALIKE:
        return "behind"
    if least >= -_ALIKE and most <= _ALIKE:
        return "as good"
    if least >= -_ALIKE:
        return "ahead on some seeds, as good on the others"
    if most <= _ALIKE:
        return "behind on some seeds, as good on the others"
    return "ahead on some seeds, behind on others"


def _listings(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A comparison of the ways of listing members; empty if there is only one way."""
    if len(names) < 2:
        return ""
    bars = ", ".join(f"{name} {_range(accuracy(results, name, ['barlen']))}" for name in names)
    counts = ", ".join(f"{name} {_range(accuracy(results, name, ['count']))}" for name in names)
    return (
        f"How the members are listed. Bar length: {bars}. Counting: {counts}. {names[0]} keeps the K nearest to "
        'the centre, listed in raster order, last first (members="nearest"); nearest_first lists the same ones by '
        "nearness; last takes the last K members; spread K members evenly over the group."
    )


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"


def _signed(values: Sequence[float]) -> str:
    low, high = (round(value, 2) + 0.0 for value in (min(values), max(values)))  # + 0.0: no "-0.00"
    return f"{low:+.2f}" if low == high else f"{low:+.2f} to {high:+.2f}"
