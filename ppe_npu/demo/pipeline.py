"""`make demo`: data -> a dense base model -> every method fine-tuned from it, alike -> answers, table, plot.

Everything goes through the parts that a real model uses: transformers' Qwen2.5-VL and its processor, compress(), the
trainer, the evaluation runner. A killed run resumes where it stopped: finished results are kept in the output folder
and are not computed again.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.config import CompressionConfig
from ppe_npu.demo import costs, findings, scenes, smaller
from ppe_npu.demo import methods as many
from ppe_npu.demo.recipe import BASE, EVAL, GATE, RATIOS, SEEDS, TUNE, BaseRecipe, EvalRecipe, K, TuneRecipe
from ppe_npu.demo.running import Contender, Job, draw_once, set_up_process, train_once, worker_pool
from ppe_npu.errors import InputError
from ppe_npu.evaluation.interleaving import ROUNDS
from ppe_npu.evaluation.report import check_plotting
from ppe_npu.files import new_folder, write_json

_DATA_SEEDS = {"base": 1, "tune": 2, "test": 3}


def main(args: argparse.Namespace) -> int:
    """Run the demo and write <output>/report.md and report.png; returns 1 if a base model is too weak to compare on."""
    if args.seeds < 1:
        raise InputError(f"seeds={args.seeds}: give at least 1")
    if args.methods:  # reports a wrong name or ratio before anything else
        chosen: list = many.rows(many.asked(args.methods), many.tuned_ratios(args))
    else:
        chosen = methods(RATIOS if args.full else RATIOS[:1], listings=args.full)
    check_plotting()
    device, started = devices.resolve(args.device), time.perf_counter()
    output = Path(args.output)
    seeds = list(SEEDS) if args.full else list(range(args.seeds))
    _make_data(output / "data")
    # One process per core with one thread each is faster than one process with many threads, because tensors are tiny.
    workers = min(os.cpu_count() or 1, len(seeds) * len(chosen)) if devices.on_cpu(device) else 1
    threads = 1 if workers > 1 else None
    base_threads = max((os.cpu_count() or 1) // len(seeds), 1) if devices.on_cpu(device) else None
    with worker_pool(min(workers, len(seeds))) as pool:
        list(pool.map(_train_base, [(str(output), seed, device.type, base_threads) for seed in seeds]))
    if args.methods:
        jobs: list = many.jobs(output, chosen, seeds, args.full, device.type, threads)
    else:
        jobs = [Job(method, seed, str(output), device.type, threads) for seed in seeds for method in chosen]
    with worker_pool(workers) as pool:
        results = list(pool.map(many.run_job if args.methods else run_job, jobs))
        if args.methods:
            return many.report(output, results, time.perf_counter() - started, _command(args))
        controls = smaller.controls(jobs, RATIOS if args.full else RATIOS[:1])
        results += pool.map(smaller.run, controls)
    first = [control for control in controls if control.job.seed == seeds[0]]
    costs.measure([job for job in jobs if job.seed == seeds[0]], first, output / "data" / "test.jsonl", ROUNDS)
    names = [*(method.name for method in chosen), *(control.name for control in first)]
    results.sort(key=lambda result: names.index(result["name"]))
    return _report(output, results, time.perf_counter() - started, _command(args))


def methods(ratios: Sequence[float], listings: bool) -> list[Contender]:
    """Dense, Chat-UniVi, keep-one and PPE at every ratio; with `listings`, also PPE's other ways of listing members at
    the smallest ratio, where a merged token has the most members."""
    out = [Contender("dense", CompressionConfig.preset("dense"))]
    for ratio in ratios:
        tail = f" {ratio:.0%}" if len(ratios) > 1 else ""
        out.append(Contender(f"Chat-UniVi{tail}", CompressionConfig.preset("chatunivi", ratio=ratio)))
        out.append(Contender(f"keep-one{tail}", CompressionConfig.preset("keep_one", ratio=ratio)))
        out.append(Contender(f"PPE{tail}", CompressionConfig.preset("ppe", ratio=ratio, k=K)))
        for members in ("last", "spread", "nearest_first") if listings and ratio == min(ratios) else ():
            config = CompressionConfig.preset("ppe", ratio=ratio, k=K, members=members)
            out.append(Contender(f"PPE {members}{tail}", config))
    return out


def _make_data(folder: Path) -> None:
    recipes: dict[str, BaseRecipe | TuneRecipe | EvalRecipe] = {"base": BASE, "tune": TUNE, "test": EVAL}
    for name, recipe in recipes.items():
        asked = [recipe.images, _DATA_SEEDS[name], recipe.questions, recipe.simple]
        draw_once(folder, name, asked, "scenes", scenes.write_split)


def _train_base(task: tuple[str, int, str, int | None]) -> None:
    """The dense model of one seed: <output>/seedN/base/final."""
    from ppe_npu.demo import tiny

    output, seed, device, threads = task
    set_up_process(threads)
    folder = Path(output) / f"seed{seed}"
    if not (folder / "start" / "config.json").is_file():
        with new_folder(folder / "start") as start:
            tiny.build_model(seed).save_pretrained(start)
            tiny.build_processor().save_pretrained(start)
    train_once(BASE, folder / "start", Path(output) / "data" / "base.jsonl", folder / "base", "dense", seed, device)


def run_job(job: Job) -> dict[str, Any]:
    """Fine-tune and evaluate one method for one seed; returns the runner's results, with method, seed and ratio."""
    from ppe_npu.checkpoints.loading import load_model, load_processor
    from ppe_npu.evaluation import benchmarks
    from ppe_npu.evaluation.runner import evaluate
    from ppe_npu.models import compress

    set_up_process(job.threads)
    base, data = job.folder.parent / "base" / "final", Path(job.output) / "data"
    train_once(TUNE, base, data / "tune.jsonl", job.folder, job.method.config, job.seed, job.device)
    final = job.folder / "final"
    model = compress(load_model(final, devices.resolve(job.device)), job.method.config)
    benchmark = benchmarks.load("layout", data / "test.jsonl")
    limits = {"batch_size": EVAL.batch_size, "max_new_tokens": EVAL.max_new_tokens}
    results = evaluate(model, load_processor(final), benchmark, job.folder / "eval", name=job.method.name, **limits)
    curve = re.sub(r" \d+%$", "", job.method.name)
    return {**results, "method": curve, "seed": job.seed, "ratio": job.method.config.ratio}


def _report(output: Path, results: list[dict[str, Any]], seconds: float, command: str) -> int:
    from ppe_npu.evaluation.report import write_report

    results = [
        result | {"types": {kind: result["types"][kind] for kind in scenes.QUESTION_TYPES}} for result in results
    ]
    write_json(output / "results.json", results)
    made = {name: len((output / "data" / f"{name}.jsonl").read_text().splitlines()) for name in _DATA_SEEDS}
    notes = [
        *findings.paragraphs(results, GATE),
        f"Made by `{command}` in {seconds / 60:.1f} minutes (without what an interrupted run had finished before): "
        f"{made['base']:,} scenes for the base model, {made['tune']:,} for fine-tuning and {made['test']:,} unseen "
        f"ones for testing; {BASE.max_steps:,} steps, then {TUNE.max_steps:,}, in batches of {BASE.batch_size}.",
    ]
    title = "Positions of merged tokens, in miniature"
    path, table = write_report(results, output / "report.md", title, notes)
    print(f"{table}\n\n" + "\n\n".join(notes) + f"\n\nwritten to {path}")
    weak = findings.weak_seeds(results, GATE)
    return 1 if weak else 0


def _command(args: argparse.Namespace) -> str:
    extra = " FULL=1" if args.full else f" SEEDS={args.seeds}" if args.seeds > 1 else ""
    if args.methods:
        extra += f' METHODS="{" ".join(args.methods)}"' + (" TRAINING_FREE=1" if args.training_free else "")
        extra += f' TUNE_RATIOS="{" ".join(f"{ratio:g}" for ratio in args.tune_ratios)}"' if args.tune_ratios else ""
    return f"make demo DEVICE={args.device}{extra}"
