"""The cost pass of `ppe-npu eval`, in which a benchmark's methods are timed alternately on the same prompts after the
scores; and the control of every table, the dense model on smaller input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppe_npu.config import CompressionConfig
from ppe_npu.data.tiles import is_tiled
from ppe_npu.errors import FileError, InputError
from ppe_npu.evaluation import cost_pass, group_pictures
from ppe_npu.evaluation.identity import PROCESSOR_MARKS, marks, unlike
from ppe_npu.evaluation.interleaving import PROMPTS, ROUNDS
from ppe_npu.evaluation.results import run_title
from ppe_npu.evaluation.run_protocol import label
from ppe_npu.models import compress
from ppe_npu.utils.reading import json_or_none

if TYPE_CHECKING:
    from ppe_npu.cli.evaluate import AskedRun

_LEAST = 2  # least rounds if --cost-rounds is not given and rounds take long
_NEAR = 0.01  # shares of the tokens that differ by no more than this count as the same
_OF_METHOD = ("compression", "smaller_input")  # the only settings in which the methods of one pass may differ


def smaller_input(args: argparse.Namespace, processor: Any) -> bool:
    """Whether the dense model is also run on smaller input; by default it is, unless its pictures are tiles.

    Raises:
        InputError: --smaller-input is given for a model whose pictures are tiles.
    """
    tiled = is_tiled(processor)
    if args.smaller_input and tiled:
        raise InputError("--smaller-input needs a model whose pictures are not tiles of one size: leave it out")
    return args.smaller_input is not False and not tiled


def shares(args: argparse.Namespace, chosen: Sequence[CompressionConfig]) -> list[float]:
    """The shares of the tokens that methods are asked to keep, as far as their ratio states one; largest first."""
    found = args.ratio or [config.ratio for config in chosen if not config.is_dense]
    return sorted({float(ratio) for ratio in found if _is_share(ratio)}, reverse=True)


def says_its_share(config: CompressionConfig) -> bool:
    """Whether the compression's ratio is one share of the tokens, which it then keeps, rounded to whole tokens."""
    return not config.is_dense and _is_share(config.ratio)


def _is_share(ratio: Any) -> bool:
    return isinstance(ratio, (int, float)) and 0 < ratio < 1


def kept_shares(results: Iterable[dict[str, Any]], known: Iterable[float]) -> list[float]:
    """The shares that a benchmark's methods really kept, to two digits, without those that are (nearly) known."""
    found = set(known)
    for result in results:
        kept = result["costs"]["retention"] or 1.0
        share = float(f"{kept:.2g}")
        if result["settings"].get("smaller_input") is None and 0 < share < 1:
            near = any(abs(kept - other) <= min(_NEAR, kept / 10) for other in found)
            found |= set() if near else {share}
    return sorted(found - set(known), reverse=True)


def measure(model: Any, runs: Sequence[AskedRun], args: argparse.Namespace, answers: Callable[[AskedRun], Any]) -> None:
    """Write a cost pass for every benchmark that has several methods; a pass that fails is reported and left out.

    Args:
        args: args.cost_rounds is the number of rounds; None: ROUNDS, and no pass if the same one was measured before.
        answers: makes what answers a run: ModelAnswers, or the control's SmallerInput.
    """
    for folder in dict.fromkeys(run.folder.parent for run in runs):
        own = [run for run in runs if run.folder.parent == folder]
        try:
            _measure(model, own + _earlier(model, own), args.cost_rounds, answers)
        except FileError:  # not a method's fault: a full disk would stop all later passes, too
            raise
        except cost_pass.FAULTS as error:  # the scores are complete, and stay valid without the costs
            print(f"ppe-npu: {own[0].benchmark.name}: costs were not measured ({error})", file=sys.stderr)


def _measure(model: Any, runs: Sequence[AskedRun], asked: int | None, answers: Callable[[AskedRun], Any]) -> None:
    name, folder, count = runs[0].benchmark.name, runs[0].folder.parent, asked or ROUNDS
    titles = [_title(run) for run in runs]
    if len(runs) < 2 or (asked is None and _measured(folder, runs)):
        return
    rounds = f"{count} or more rounds, until the ratios are known (--cost-rounds 0: not at all)"
    print(f"ppe-npu: {name}: measuring costs in {rounds}", file=sys.stderr)
    dense = next((t for t, run in zip(titles, runs) if run.config.is_dense and run.share is None), titles[0])
    samples = cost_pass.spread_samples(runs[0].benchmark, PROMPTS)
    candidates = []
    for title, run in zip(titles, runs):
        compress(model, run.config)
        candidates.append(cost_pass.Candidate(title, answers(run), partial(compress, model, run.config)))
    found = cost_pass.measure(candidates, samples, count, dense, _LEAST if asked is None else None)
    for index, why in found["left_out"].items():
        print(f"ppe-npu: {name}: sample {index} is left out of the costs ({why})", file=sys.stderr)
    _draw(runs, candidates, samples)
    of = {method: own[0] for method, own in _marks_of(runs).items()}
    cost_pass.write(folder, {**found, "of": of}, label(runs[0].identity))


def _title(run: AskedRun) -> str:
    return run_title({"compression": run.config.to_dict(), "smaller_input": run.share})


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of a run; {} if they cannot be read."""
    found = json_or_none(folder / "settings.json")
    return found if isinstance(found, dict) else {}


def _marks_of(runs: Sequence[AskedRun]) -> dict[str, list[str]]:
    """{method: marks of its settings}. A pass with one mark of each method has measured the same settings."""
    return {_title(run): marks(_settings(run.folder)) for run in runs}


def _measured(folder: Path, runs: Sequence[AskedRun]) -> bool:
    found = json_or_none(folder / cost_pass.FILE)
    of = found.get("of") if isinstance(found, dict) else None
    known = _marks_of(runs)
    return isinstance(of, dict) and of.keys() == known.keys() and all(of[name] in known[name] for name in known)


def _earlier(model: Any, runs: Sequence[AskedRun]) -> list[AskedRun]:
    """Runs of earlier commands in the benchmark's folder with the same model and settings, to be in the same table."""
    known, titles = {run.folder for run in runs}, {_title(run) for run in runs}
    here = _settings(runs[0].folder)
    found = []
    for file in sorted(runs[0].folder.parent.glob("*/results.json")):
        # Earlier editions of the package did not record the processor.
        settings = {**{key: here[key] for key in PROCESSOR_MARKS if key in here}, **_settings(file.parent)}
        if file.parent in known or not {*unlike(settings, here)} <= {*_OF_METHOD}:
            continue
        try:
            config = CompressionConfig.from_dict(settings["compression"])
            run = replace(runs[0], config=config, folder=file.parent, share=settings.get("smaller_input"))
            compress(model, config)
        except (InputError, KeyError):  # results of another edition of the package
            continue
        if _title(run) not in titles:
            titles.add(_title(run))
            found.append(run)
    return found


def _draw(runs: Sequence[AskedRun], candidates: Sequence[cost_pass.Candidate], samples: Sequence[Any]) -> None:
    """Draw the pass's samples, and more samples on which scores differ, with the groups of all methods."""
    folder = runs[0].folder.parent
    shown, seen = [*samples, *_differing(runs, samples)], {}
    group_pictures.draw(folder, "", candidates[0].answers, shown, seen)
    for one in candidates:
        one.ready()
        group_pictures.draw(folder, one.name, one.answers, shown, seen)
    group_pictures.list_names(folder, [one.name for one in candidates])


def _differing(runs: Sequence[AskedRun], known: Sequence[Any]) -> list[Any]:
    """Samples to draw, on which the runs differ; none if they cannot be read, as the scores do not depend on them."""
    try:
        return group_pictures.differing_samples(runs[0].benchmark, [run.folder for run in runs], known)
    except cost_pass.FAULTS as error:
        print(f"ppe-npu: {runs[0].benchmark.name}: no further samples are drawn ({error})", file=sys.stderr)
        return []
