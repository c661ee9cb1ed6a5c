"""The cost pass of `ppe-npu eval`: after the scores, all methods of a benchmark in turns on the same prompts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppe_npu.config import CompressionConfig
from ppe_npu.data.tiles import is_tiled
from ppe_npu.errors import InputError
from ppe_npu.evaluation import cost_pass, group_pictures, protocols
from ppe_npu.evaluation.interleaving import PROMPTS, ROUNDS
from ppe_npu.evaluation.results import run_title
from ppe_npu.models import compress

if TYPE_CHECKING:
    from ppe_npu.cli.evaluate import Asked


def rounds(args: argparse.Namespace, protocol: protocols.Protocol) -> int:
    """How many were asked for; by default as many as a table needs, under the first edition's protocol none."""
    if args.cost_rounds is not None:
        return args.cost_rounds
    return 0 if protocol.name == protocols.CHECKPOINT else ROUNDS


def shares(
    args: argparse.Namespace, protocol: protocols.Protocol, chosen: Sequence[CompressionConfig], processor: Any
) -> list[float]:
    """Of which shares of the tokens the dense model is asked on smaller input: of every method's; by default not under
    the first edition's protocol.

    Raises:
        InputError: it is asked for of a model whose pictures are tiles.
    """
    wanted = args.smaller_input if args.smaller_input is not None else protocol.name != protocols.CHECKPOINT
    if not wanted:
        return []
    if is_tiled(processor):
        raise InputError("--smaller-input, but pictures of this model are tiles of one size: leave it out")
    found = args.ratio or [config.ratio for config in chosen if not config.is_dense]
    return sorted({float(ratio) for ratio in found if isinstance(ratio, (int, float)) and 0 < ratio < 1}, reverse=True)


def measure(model: Any, runs: Sequence[Asked], count: int, answers: Any) -> None:
    """Write a pass for every benchmark that was asked with several methods; one that fails is said and left out.

    Args:
        answers: of a run, ModelAnswers or the control's.
    """
    for folder in dict.fromkeys(run.folder.parent for run in runs):
        own = [run for run in runs if run.folder.parent == folder]
        if len(own) < 2:
            continue
        titles = [run_title({"compression": run.config.to_dict(), "smaller_input": run.share}) for run in own]
        dense = next((t for t, run in zip(titles, own) if run.config.is_dense and run.share is None), titles[0])
        print(f"ppe-npu: {own[0].benchmark.name}: costs in turns, {count} rounds", file=sys.stderr)
        samples = cost_pass.chosen(own[0].benchmark, PROMPTS)
        candidates = []
        for title, run in zip(titles, own):
            compress(model, run.config)
            ready = partial(compress, model, run.config)
            candidates.append(cost_pass.Candidate(title, answers(run), ready))
        try:
            found = cost_pass.measure(candidates, samples, count, dense)
        except cost_pass.FAULTS as error:  # the scores are there: what fails here takes nothing from them
            print(f"ppe-npu: {own[0].benchmark.name}: costs were not measured ({error})", file=sys.stderr)
            continue
        cost_pass.write(Path(folder), found, protocols.label({"protocol": own[0].protocol}))
        shown = samples + _differing(own, samples)
        group_pictures.draw(Path(folder), "", candidates[0].answers, shown)
        for one in candidates:
            one.ready()
            group_pictures.draw(Path(folder), one.name, one.answers, shown)
        group_pictures.list_names(Path(folder), titles)


def _differing(runs: Sequence[Asked], known: Sequence[Any]) -> list[Any]:
    """Samples to draw, on which the runs differ; none where they cannot be read: the scores are there."""
    try:
        return group_pictures.differing(runs[0].benchmark, [run.folder for run in runs], known)
    except cost_pass.FAULTS as error:
        print(f"ppe-npu: {runs[0].benchmark.name}: no more samples are drawn ({error})", file=sys.stderr)
        return []
