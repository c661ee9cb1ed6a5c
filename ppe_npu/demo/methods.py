"""`make demo METHODS="divprune tome"`: compares any methods, with one position and with PPE's positions, at several
fractions of the tokens, training-free and after fine-tuning. METHODS=all: every method that `ppe-npu methods` lists.

The controls are rows of the same table: random, uniform and avg_pool if they are named, and always the dense model and
the same picture made smaller before the model sees it.

The tiny model has two decoder layers; methods that work at a layer are placed at the second. Its vision tower has one
block, which attends only within windows; methods that need a block's attention get that block's attention computed
over the whole picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppe_npu.config import CompressionConfig
from ppe_npu.demo import methods_page, tiny
from ppe_npu.demo.recipe import EVAL, TUNE, K
from ppe_npu.demo.running import set_up_process, train_once
from ppe_npu.errors import InputError, shown
from ppe_npu.files import write_json, write_text
from ppe_npu.methods.listing import default, of_pictures
from ppe_npu.settings import fields_to_plain

RATIOS = (0.5, 0.25, 0.1)
_LAYER = 1  # of the tiny model's two decoder layers, the one for methods that work at a layer
FEW = 64  # number of test pictures to use if not all seeds are run; 12 questions each
_PROMPTS, _TIMES = 64, 7  # size of the batch on which a method's cost is measured, and how often


@dataclass(frozen=True)
class TableRow:
    """A row of the table at one ratio.

    Attributes:
        name: the method, as the user named it; "dense", or "smaller picture".
        positions: "keep_one" or "ppe"; "" where nothing is merged.
        ratio: requested fraction of the tokens. side: tokens along the side of a smaller picture.
        tuned: whether the model was fine-tuned with it.
    """

    name: str
    positions: str
    ratio: float
    tuned: bool
    side: int | None = None

    @property
    def config(self) -> CompressionConfig:
        if not self.positions:
            return CompressionConfig.preset("dense")
        keys = {"ratio": self.ratio, "positions": self.positions} | ({"k": K} if self.positions == "ppe" else {})
        method = default(self.name.partition(":")[0])
        own = {} if "input" in method.places else {"layer": _LAYER}
        own |= {"tower_windows": "frame"} if "tower_windows" in fields_to_plain(method) else {}
        return CompressionConfig.from_text(self.name, **keys, **own)

    @property
    def pixels(self) -> dict[str, int]:
        """Bounds on the picture, as training and load_processor take them."""
        if self.side is None:
            return {}
        area = (self.side * tiny.PATCH * tiny.MERGE) ** 2
        return {"min_pixels": area, "max_pixels": area}


@dataclass(frozen=True)
class RowJob:
    """One row for one seed; everything a worker process needs."""

    row: TableRow
    seed: int
    output: str
    device: str
    threads: int | None
    test: str = "test"

    @property
    def folder(self) -> Path:
        words = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in self.row.name)
        share = "" if self.row.name == "dense" else f"-{self.row.ratio:g}"
        return Path(self.output) / f"seed{self.seed}" / "methods" / f"{words}-{self.row.positions}{share}"


def asked(names: Sequence[str]) -> list[str]:
    """The methods that METHODS names.

    Raises:
        InputError: an unknown name or key, or a method that leaves pictures alone.
    """
    names = [name for each in names for name in each.split()]
    known = of_pictures()
    names = list(known) if names == ["all"] else names
    for name in names:
        if name.partition(":")[0] not in known:
            raise InputError(f"--methods {shown(name)}: give all, or some of {', '.join(known)}")
        for ratio in RATIOS:
            TableRow(name, "ppe", ratio, False).config  # noqa: B018  raises before any work if a setting is wrong
    return list(dict.fromkeys(names))


def rows(names: Sequence[str], tuned: Sequence[float]) -> list[TableRow]:
    """All rows: training-free at all ratios, then fine-tuned at those in `tuned`."""
    out, side = [], round(tiny.VISUAL_TOKENS**0.5)
    for after, ratios in ((False, RATIOS), (True, tuned)):
        if not ratios:
            continue
        out.append(TableRow("dense", "", 1.0, after))
        out += [TableRow("smaller picture", "", ratio, after, round(side * ratio**0.5)) for ratio in ratios]
        out += [TableRow(n, positions, r, after) for n in names for positions in ("keep_one", "ppe") for r in ratios]
    return out


def tuned_ratios(args: argparse.Namespace) -> Sequence[float]:
    """The ratios at which methods are fine-tuned, too.

    Raises:
        InputError: a ratio that the table does not have, or one beside --training-free.
    """
    if args.training_free and args.tune_ratios:
        raise InputError("--training-free skips what --tune-ratios selects: give only one of them")
    unknown = [ratio for ratio in args.tune_ratios or () if ratio not in RATIOS]
    if unknown:
        raise InputError(f"--tune-ratios {unknown[0]:g}: give some of {', '.join(f'{ratio:g}' for ratio in RATIOS)}")
    return () if args.training_free else [ratio for ratio in RATIOS if ratio in (args.tune_ratios or RATIOS)]


def jobs(output: Path, chosen: Sequence[TableRow], seeds: Sequence[int], whole: bool, device: str, threads: int | None):
    """One job for each seed and row, on all test pictures if `whole`, else on the first FEW."""
    if not whole:
        lines = (output / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(output / "data" / "few.jsonl", "".join(lines[:FEW]))
    test = "test" if whole else "few"
    return [RowJob(row, seed, str(output), device, threads, test) for seed in seeds for row in chosen]


def run_job(job: RowJob) -> dict[str, Any]:
    """Evaluate one row for one seed, fine-tuning first if it is a tuned row; returns its fields, results and costs."""
    from ppe_npu.backends import device as devices
    from ppe_npu.checkpoints.loading import load_model, load_processor
    from ppe_npu.evaluation import benchmarks
    from ppe_npu.evaluation.runner import evaluate
    from ppe_npu.models import compress

    set_up_process(job.threads)
    row, config = job.row, job.row.config
    model_folder, data = job.folder.parent.parent / "base" / "final", Path(job.output) / "data"
    if row.tuned:
        tuned = job.folder / "tuned"
        train_once(TUNE, model_folder, data / "tune.jsonl", tuned, config, job.seed, job.device, **row.pixels)
        model_folder = tuned / "final"
    model = compress(load_model(model_folder, devices.resolve(job.device)), config)
    processor = load_processor(model_folder, **row.pixels)
    benchmark = benchmarks.load("layout", data / f"{job.test}.jsonl")
    limits = {"batch_size": EVAL.batch_size, "max_new_tokens": EVAL.max_new_tokens}
    folder = job.folder / f"eval-{'tuned' if row.tuned else 'free'}-{job.test}"
    results = evaluate(model, processor, benchmark, folder, name=row.name, **limits)
    cost = {} if row.tuned or not row.positions else _cost(model, processor, benchmark)
    own = {"row": row.name, "positions": row.positions, "share": row.ratio, "tuned": row.tuned, "seed": job.seed}
    return {**own, **cost, "types": results["types"], "accuracy": results["accuracy"], "costs": results["costs"]}


def _cost(model: Any, processor: Any, benchmark: Any) -> dict[str, float]:
    """Medians on one batch: the fraction of its prefill time in which tokens are chosen, merged and placed; and its
    prefill time over the dense one's, measured alternately in one process."""
    import statistics

    import torch

    from ppe_npu.evaluation.answers import ModelAnswers
    from ppe_npu.models import compress

    config = model.compression.config
    samples = [benchmark[number] for number in range(min(_PROMPTS, len(benchmark)))]
    inputs = ModelAnswers(model, processor, 1).prepare(samples)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    taken: dict[bool, list[float]] = {True: [], False: []}
    own = []
    for _ in range(_TIMES):
        for dense in (True, False):
            compress(model, CompressionConfig.preset("dense") if dense else config)
            with torch.no_grad():
                model(**inputs, logits_to_keep=1)
                start = time.perf_counter()
                model(**inputs, logits_to_keep=1)
                report = model.compression.report
                spent = report.milliseconds  # waits for the device
                taken[dense].append(1e3 * (time.perf_counter() - start))
            if not dense:
                own.append(spent / taken[False][-1])
    medians = {dense: statistics.median(values) for dense, values in taken.items()}
    return {"selection": statistics.median(own), "prefill": medians[False] / medians[True]}


def report(output: Path, results: list[dict[str, Any]], seconds: float, command: str) -> int:
    """Write <output>/methods.json and methods.md; the exit code is 0."""
    path = write_json(output / "methods.json", {"command": command, "minutes": seconds / 60, "results": results})
    text = methods_page.measured(results, command)
    page = write_text(output / "methods.md", text)
    print(f"{text}\nwritten to {page} and {path}")
    return 0
