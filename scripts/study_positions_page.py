"""What study_positions.py found, in tables and in words that are computed from them, whichever way they fall."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppe_npu.errors import counted
from ppe_npu.evaluation.statistics import bootstrap_means, interval
from ppe_npu.evaluation.tables import markdown

PAGE_START = "<!-- measured: scripts/study_positions.py writes what follows -->\n"
PAGE_END = "<!-- measured end -->\n"
KINDS = ("shape", "row", "col", "barlen", "count")
REFERENCE = "one position"
WIDEST = 150  # characters of a document's line
HEADS = {"free": "Training-free", "sft": "After fine-tuning", "distill": "After self-distillation"}
Scores = np.ndarray  # [seeds, questions]


def measured(study: dict[str, Any]) -> str:
    """Everything that docs/positions.md says of a study (results.json)."""
    parts = []
    for how, head in HEADS.items():
        own = [one for one in study["results"] if one["how"] == how]
        for share in sorted({one["share"] for one in own if one["row"] != "dense"}, reverse=True):
            parts += _share(study, own, share, how, head)
    dense = scores_of([one for one in study["results"] if one["row"] == "dense"])
    if len(dense):
        by_kind = ", ".join(f"{kind} {_short(dense[:, _of(study, kind)].mean())}" for kind in KINDS)
        parts.insert(0, f"The dense models: {by_kind}.")
    parts.append(
        f"Made by `{study['command']}`: {study['images']} pictures, dense models of {study['base_steps']} steps."
    )
    lines = "\n\n".join([*parts, ""]).splitlines()
    return "".join(f"{line if line.startswith('|') else textwrap.fill(line, WIDEST)}\n" for line in lines)


def _share(study: dict[str, Any], own: Sequence[dict], share: float, how: str, head: str) -> list[str]:
    """The table of one share, and what it says."""
    found = {}
    for one in own:
        if one["share"] == share and one["row"] != "dense":
            found.setdefault(one["row"], []).append(one)
    scores = {name: scores_of(runs) for name, runs in found.items()}
    against = REFERENCE if REFERENCE in scores else next(iter(scores))
    lines = [
        [name, *(_cell(study, values, scores[against], kind, name == against) for kind in KINDS)]
        for name, values in scores.items()
    ]
    seeds = len(scores[against])
    title = f"### {head}, {share:.0%} of the tokens ({counted(seeds, 'seed')})"
    return [title, markdown(["positions", *KINDS], lines), _says(study, scores, against, share, head)]


def scores_of(runs: Sequence[dict]) -> Scores:
    return np.array([one["scores"] for one in sorted(runs, key=lambda one: one["seed"])])


def _of(study: dict[str, Any], kind: str) -> np.ndarray:
    return np.flatnonzero(np.array(study["types"]) == kind)


def difference(study: dict[str, Any], values: Scores, reference: Scores, kind: str) -> tuple[float, float, float, int]:
    """(mean, low, high, seeds) of a kind's scores minus the reference's: a paired bootstrap interval at 95 % over the
    pictures, whose questions and seeds stay together, and on how many seeds the mean is above zero."""
    asked = _of(study, kind)
    gaps = values[:, asked] - reference[:, asked]
    pictures = np.array(study["pictures"])[asked]
    per_picture = [gaps[:, pictures == picture].mean() for picture in dict.fromkeys(pictures.tolist())]
    low, high = interval(bootstrap_means(per_picture))
    return float(np.mean(per_picture)), low, high, int((gaps.mean(1) > 0).sum())


def _cell(study: dict[str, Any], values: Scores, reference: Scores, kind: str, is_reference: bool) -> str:
    accuracy = _short(values[:, _of(study, kind)].mean())
    if is_reference:
        return accuracy
    _, low, high, _ = difference(study, values, reference, kind)
    mark = " +" if low > 0 else " -" if high < 0 else ""
    return f"{accuracy} ({_signed(low)} to {_signed(high)}){mark}"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"


def _signed(value: float) -> str:
    return f"{value + 0.0:+.2f}".replace("0.", ".").replace("-.00", "+.00")


def _says(study: dict[str, Any], scores: dict[str, Scores], against: str, share: float, head: str) -> str:
    """Which rows are ahead on which kinds, by their intervals; and whether one of them is worse on none."""
    ahead, behind, clean = [], [], []
    for name, values in scores.items():
        if name == against:
            continue
        gaps = {kind: difference(study, values, scores[against], kind) for kind in KINDS}
        better = [kind for kind, (_, low, _, _) in gaps.items() if low > 0]
        worse = [kind for kind, (_, _, high, _) in gaps.items() if high < 0]
        ahead += [
            f"{name} ({', '.join(f'{kind} on {gaps[kind][3]} of {len(values)} seeds' for kind in better)})"
        ] * bool(better)
        behind += [f"{name} ({', '.join(worse)})"] * bool(worse)
        clean += [name] * (len([kind for kind in better if gaps[kind][3] == len(values)]) > 1 and not worse)
    said = f"{head}, {share:.0%}: better than {against} by the interval: {'; '.join(ahead) or 'none'}. "
    said += f"Worse: {'; '.join(behind) or 'none'}. "
    means = {name: statistics.mean(values.mean(1).tolist()) for name, values in scores.items()}
    best = max(means, key=means.__getitem__)
    said += f"Over all questions the best is {best} at {means[best]:.3f}, {against} is at {means[against]:.3f}. "
    won = f"{', '.join(clean)}." if clean else "none."
    return said + f"Better on two kinds or more, on every seed, and worse on none: {won}"
