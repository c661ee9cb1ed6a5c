"""Reports the results of study_positions.py in tables, and in sentences that are computed from the numbers.

    python scripts/study_positions_page.py runs/positions/results.json docs/positions.md

writes the report into the page again, without running a model.
"""

from __future__ import annotations

import itertools
import json
import shlex
import statistics
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppe_npu.demo.methods_page import short
from ppe_npu.errors import InputError, counted
from ppe_npu.evaluation.statistics import bootstrap_means, interval
from ppe_npu.evaluation.tables import markdown
from ppe_npu.files import write_text

# task -> the lines of the page that enclose its report
MARKS = {
    "layout": ("<!-- measured: scripts/study_positions.py writes what follows -->\n", "<!-- measured end -->\n"),
    "motion": ("<!-- motion: scripts/study_positions.py writes what follows -->\n", "<!-- motion end -->\n"),
}
KINDS = {"layout": ("shape", "row", "col", "barlen", "count"), "motion": ("towards", "times", "changed")}
REFERENCE, COUNTED = "one position", ", sizes counted"
WIDEST = 150  # characters of a document's line
HEADS = {"free": "Training-free", "sft": "After fine-tuning", "distill": "After self-distillation"}
Scores = np.ndarray  # [seeds, questions]


def put(page: Path, study: dict[str, Any]) -> Path:
    """Write a task's report between its marks on a page.

    Raises:
        InputError: the page has no such marks.
    """
    start, end = MARKS[_task(study)]
    before, marked, rest = page.read_text(encoding="utf-8").partition(start)
    _, ended, after = rest.partition(end)
    if not marked or not ended:
        raise InputError(f"{page} has no lines {start.strip()!r} and {end.strip()!r}: put them where the tables belong")
    return write_text(page, before + start + measured(study) + end + after)


def measured(study: dict[str, Any]) -> str:
    """The report on a study (results.json) for docs/positions.md, as Markdown."""
    parts = []
    for how, head in HEADS.items():
        own = [one for one in study["results"] if one["how"] == how and "method" not in one]
        for share in sorted({one["share"] for one in own if one["row"] != "dense"}, reverse=True):
            parts += _share(study, own, share, how, head)
    parts += _on_other_groups(study)
    dense = scores_of([one for one in study["results"] if one["row"] == "dense"])
    if len(dense):
        by_kind = ", ".join(f"{kind} {short(dense[:, _of(study, kind)].mean())}" for kind in kinds_of(study))
        parts.insert(0, f"The dense models: {by_kind}.")
    asked = "clips" if _task(study) == "motion" else "pictures"
    where = f"; {study['machine']}, {study['date']}" if "date" in study else ""
    made = (
        f"Made by `{_command(study)}`: {study['images']} {asked}, dense models of {study['base_steps']} steps{where}."
    )
    lines = "\n\n".join([*parts, made, ""]).splitlines()
    return "".join(f"{line if line.startswith('|') else textwrap.fill(line, WIDEST)}\n" for line in lines)


def _task(study: dict[str, Any]) -> str:
    return study.get("task", "layout")


def kinds_of(study: dict[str, Any]) -> tuple[str, ...]:
    """The kinds of a study's questions, in the order of its task."""
    return KINDS[_task(study)]


def _command(study: dict[str, Any]) -> str:
    """The study's command, without its output folder, and with docs/positions.md as its page."""
    words = shlex.split(study["command"])
    elsewhere = {"--output", "--page"}
    words = [part for word in words for part in (word.split("=", 1) if word.split("=")[0] in elsewhere else [word])]
    kept = [word for before, word in itertools.pairwise(["", *words]) if not elsewhere & {before, word}]
    return shlex.join([*kept, "--page", "docs/positions.md"])


def _share(study: dict[str, Any], own: Sequence[dict], share: float, how: str, head: str) -> list[str]:
    """The tables and findings for one share: all rows compared with one position; then the rows with the sizes counted,
    compared with one position with the sizes counted."""
    runs = [one for one in own if one["share"] == share and one["row"] != "dense"]
    scores = _scored(runs, lambda one: one["row"])
    against = REFERENCE if REFERENCE in scores else next(iter(scores))
    title = f"### {head}, {share:.0%} of the tokens ({counted(len(scores[against]), 'seed')})"
    parts = [title, _table(study, scores, against), _says(study, scores, against, share, head)]
    alike = {name: values for name, values in scores.items() if name.endswith(COUNTED)}
    if REFERENCE + COUNTED in alike and len(alike) > 1:
        against = REFERENCE + COUNTED
        parts += [_table(study, alike, against), _says(study, alike, against, share, head)]
    return parts


def _scored(runs: Sequence[dict], key: Callable[[dict], Any]) -> dict[Any, Scores]:
    """{key: scores} of the runs with each key, for the seeds that all keys have, as a study may be unfinished."""
    found: dict[Any, list[dict]] = {}
    for one in runs:
        found.setdefault(key(one), []).append(one)
    seeds = set.intersection(*({one["seed"] for one in own} for own in found.values()))
    return {name: scores_of([one for one in own if one["seed"] in seeds]) for name, own in found.items()}


def _on_other_groups(study: dict[str, Any]) -> list[str]:
    """A table and findings for each share at which the rules were run on the groups of other methods."""
    parts = []
    own = [one for one in study["results"] if "method" in one]
    for share in sorted({one["share"] for one in own}, reverse=True):
        scores = _scored([one for one in own if one["share"] == share], lambda one: (one["method"], one["row"]))
        rules = [rule for rule in dict.fromkeys(rule for _, rule in scores) if rule != REFERENCE]
        lines, ahead, behind = [], {rule: [] for rule in rules}, {rule: [] for rule in rules}
        for method in dict.fromkeys(method for method, _ in scores):
            reference, cells = scores[method, REFERENCE], []
            for rule in rules:
                mean, low, high, _ = difference(study, scores[method, rule], reference)
                cells.append(f"{_signed(mean, 3)}{_mark(low, high)}")
                ahead[rule] += [method] * (low > 0)
                behind[rule] += [method] * (high < 0)
            lines.append([method, short(reference.mean()), *cells])
        said = [f"- {rule}: ahead with {_listed(ahead[rule])}; behind with {_listed(behind[rule])}." for rule in rules]
        title = f"### On the groups of other methods, training-free, {share:.0%} of the tokens"
        parts += [f"{title} ({counted(len(reference), 'seed')})", markdown(["groups of", REFERENCE, *rules], lines)]
        parts.append("\n".join(["Beside one position, over all questions, by the interval:\n", *said]))
    return parts


def _listed(methods: Sequence[str]) -> str:
    return f"{len(methods)} ({', '.join(methods)})" if methods else "none"


def _table(study: dict[str, Any], scores: dict[str, Scores], against: str) -> str:
    """Accuracies by kind, each with an interval of its difference to one row's accuracy."""
    kinds = kinds_of(study)
    rows = {against: scores[against], **scores} if against.endswith(COUNTED) else scores
    lines = [
        [name, *(_cell(study, values, scores[against], kind, name == against) for kind in kinds)]
        for name, values in rows.items()
    ]
    return markdown(["positions", *kinds], lines)


def scores_of(runs: Sequence[dict]) -> Scores:
    return np.array([one["scores"] for one in sorted(runs, key=lambda one: one["seed"])])


def _of(study: dict[str, Any], kind: str) -> np.ndarray:
    return np.flatnonzero(np.array(study["types"]) == kind)


def difference(
    study: dict[str, Any], values: Scores, reference: Scores, kind: str | None = None
) -> tuple[float, float, float, int]:
    """(mean, low, high, seeds) of the scores of a kind of questions (None: of all) minus the reference's: low and high
    are a paired 95 % bootstrap interval over pictures (a picture's questions and seeds stay together); seeds counts
    those with a mean above 0."""
    asked = np.arange(len(study["types"])) if kind is None else _of(study, kind)
    gaps = values[:, asked] - reference[:, asked]
    pictures = np.array(study["pictures"])[asked]
    per_picture = [gaps[:, pictures == picture].mean() for picture in dict.fromkeys(pictures.tolist())]
    low, high = interval(bootstrap_means(per_picture))
    return float(np.mean(per_picture)), low, high, int((gaps.mean(1) > 0).sum())


def _cell(study: dict[str, Any], values: Scores, reference: Scores, kind: str, is_reference: bool) -> str:
    accuracy = short(values[:, _of(study, kind)].mean())
    if is_reference:
        return accuracy
    _, low, high, _ = difference(study, values, reference, kind)
    return f"{accuracy} ({_signed(low)} to {_signed(high)}){_mark(low, high)}"


def _mark(low: float, high: float) -> str:
    """The mark of an interval without zero."""
    return " +" if low > 0 else " -" if high < 0 else ""


def _signed(value: float, digits: int = 2) -> str:
    zero = f".{0:0{digits}}"
    return f"{value:+.{digits}f}".replace("0.", ".").replace(f"-{zero}", f"+{zero}")


def _says(study: dict[str, Any], scores: dict[str, Scores], against: str, share: float, head: str) -> str:
    """The findings in words: the rows that are better or worse on some kinds by their intervals, and the best row."""
    ahead, behind, clean = [], [], []
    for name, values in scores.items():
        if name == against:
            continue
        gaps = {kind: difference(study, values, scores[against], kind) for kind in kinds_of(study)}
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
    beside = "" if best == against else f", {against} is at {means[against]:.3f}"
    said += f"Over all questions the best is {best} at {means[best]:.3f}{beside}. "
    won = f"{', '.join(clean)}." if clean else "none."
    return said + f"Better on two kinds or more, on every seed, and worse on none: {won}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    results, document = map(Path, sys.argv[1:])
    print(put(document, json.loads(results.read_text(encoding="utf-8"))))
