"""`ppe-npu eval` and `ppe-npu report`: several benchmarks with several compressions, and one report over all of them.

Everything that can be wrong is looked for before the weights are read. Any number of processes may run the same
command on the same output: they share the work (ppe_npu/evaluation/sharing.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.loading import DTYPES, load_model, quiet_transformers
from ppe_npu.cli import common
from ppe_npu.cli.train import EMBEDDED, write_embedded_data
from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks
from ppe_npu.evaluation.answers import ModelAnswers, answer_settings
from ppe_npu.evaluation.decoding import first_edition
from ppe_npu.evaluation.identity import benchmark_identity, check_settings
from ppe_npu.evaluation.report import check_plotting, collect, unfinished, write_report
from ppe_npu.evaluation.runner import Evaluation, new_tokens
from ppe_npu.evaluation.sharing import check_shared
from ppe_npu.models import compress
from ppe_npu.utils.escape import printable


@dataclass(frozen=True)
class Asked:
    """One benchmark with one compression, and the folder of its results."""

    benchmark: Any
    identity: dict[str, Any]
    config: CompressionConfig
    folder: Path
    max_new_tokens: int


def run_eval(args: argparse.Namespace) -> int:
    """Evaluate every compression on every benchmark that was asked for; print and write the report."""
    device = devices.of_this_process(devices.resolve(args.device))
    model_path = Path(args.model) if args.model else EMBEDDED / "final"
    if args.model is None and not model_path.is_dir():
        raise InputError(f"{model_path} is not there: run `ppe-npu train` first, or name a checkpoint with --model")
    _check_arguments(args)
    check_plotting()
    quiet_transformers()
    checkpoint = common.checkpoint(args, model_path)
    chosen = _chosen(args, model_path, checkpoint)
    if "layout" in args.benchmarks and Path(args.data_root) == EMBEDDED / "data":
        write_embedded_data(EMBEDDED / "data")
    loaded = load_benchmarks(args.benchmarks, args.data_root)
    processor, sampling = common.processor(args, checkpoint), common.video_sampling(args)
    values, own = common.generation(args.generation, checkpoint)
    runs, dtype = [], str(DTYPES[args.dtype]).removeprefix("torch.")
    for benchmark in loaded:
        identity, tokens = benchmark_identity(benchmark), new_tokens(benchmark, args.max_new_tokens)
        for config in chosen:
            folder = Path(args.output) / benchmark.name / config.label
            runs.append(Asked(benchmark, identity, config, folder, tokens))
            known = answer_settings(processor, config, str(model_path), dtype, tokens, sampling, args.seed, values)
            check_settings(folder, {**identity, **known}, {"generation": first_edition(own)})
    check_shared(Path(args.output))
    model = checkpoint.load(device, args.dtype, load_model)
    results = _evaluate(model, processor, runs, sampling, values, args)
    common.say(common.whose(args, model_path, chosen))
    if devices.process_rank() == 0:
        _report(args, Path(args.output), Path(args.output) / "report.md", f"Evaluation of {args.model or model_path}")
        print(f"answers of {', '.join(dict.fromkeys(_place(result) for result in results))}")
    return _verdict(results)


def run_report(args: argparse.Namespace) -> int:
    """Write the report over all results in a folder."""
    check_plotting()
    folder = Path(args.folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not there: name the --output of an evaluation")
    out = Path(args.out) if args.out else folder / "report.md"
    if out.suffix != ".md":
        raise InputError(f"--out {out}: name a .md file; the .json and .png go beside it")
    _report(args, folder, out, args.title or f"Evaluation in {folder}")
    return 0


def load_benchmarks(names: list[str], data_root: str) -> list[Any]:
    """All benchmarks that were asked for.

    Raises:
        InputError: some cannot be loaded; the message says why for each of them, not for the first alone.
    """
    loaded, problems = [], []
    for name in names:
        try:
            loaded.append(benchmarks.load(name, data_root))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("; ".join(dict.fromkeys(problems)))
    called = [benchmark.name for benchmark in loaded]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise InputError(f"--benchmarks: {', '.join(twice)} is named twice; give every benchmark its own name")
    return loaded


def _check_arguments(args: argparse.Namespace) -> None:
    if Path(args.output).is_file():
        raise InputError(f"output {args.output} is a file: name a folder")
    for option in ("batch_size", "batch_tokens", "max_new_tokens"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} {value} must be at least 1")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed {args.seed} must be in [0, 2**32)")


def _chosen(args: argparse.Namespace, model: Path, checkpoint: common.Checkpoint) -> list[CompressionConfig]:
    """Every compression that was asked for, at every ratio that was asked for; dense once."""
    configs = []
    for ratio in args.ratio or [None]:
        configs += common.compressions(argparse.Namespace(**{**vars(args), "ratio": ratio}), model)
    configs = common.fitted(checkpoint, configs)
    labels: dict[str, CompressionConfig] = {}
    for config in configs:
        if labels.setdefault(config.label, config) != config:
            raise InputError(f"--compression: two settings are both called {config.label}; evaluate them one by one")
    return list(labels.values())


def _evaluate(
    model: Any,
    processor: Any,
    runs: list[Asked],
    sampling: VideoSampling,
    generation: dict[str, Any],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The results of all runs, in order. The next begins while other processes answer the last samples of one."""
    results: list[dict[str, Any] | None] = []
    with contextlib.ExitStack() as stack:
        evaluations = []
        for asked in runs:
            compress(model, asked.config)
            answers = ModelAnswers(model, processor, asked.max_new_tokens, sampling, args.seed, generation)
            evaluation = Evaluation(
                answers,
                asked.benchmark,
                asked.folder,
                args.batch_size,
                identity=asked.identity,
                batch_tokens=args.batch_tokens,
                bar=devices.process_rank() == 0,
            )
            evaluations.append(stack.enter_context(evaluation))
            results.append(evaluation.run(wait=False))
        for number, (asked, evaluation) in enumerate(zip(runs, evaluations)):
            if results[number] is None:
                compress(model, asked.config)
                results[number] = evaluation.run()
    return results


def _report(args: argparse.Namespace, folder: Path, out: Path, title: str) -> None:
    path, table = write_report(collect(folder), out, title, missing=unfinished(folder))
    print(f"{table}\n\nwritten to {path}, with {path.with_suffix('.json').name} and {path.with_suffix('.png').name}")
    if args.json:
        common.print_json(args, json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))


def _verdict(results: list[dict[str, Any]]) -> int:
    """The exit code: 1 if every sample failed, or a benchmark's metrics() did. Failures are printed, with the first's
    reason and where all of them are."""
    failed, asked = sum(result["errors"] for result in results), sum(result["samples"] for result in results)
    if failed and devices.process_rank() == 0:
        first = next(result for result in results if result["errors"])
        file = Path(first["folder"]) / "predictions.jsonl"
        print(
            f"ppe-npu: {failed} of {asked} samples failed, the first because: {printable(_first_error(file))}; see "
            f"{file}, and run again to ask them again",
            file=sys.stderr,
        )
    broken = [result for result in results if "metrics_error" in result]
    for result in broken if devices.process_rank() == 0 else []:
        where = printable(f"{result['settings']['benchmark']}, {result['name']}")
        print(
            f"ppe-npu: {where}: metrics() failed ({printable(result['metrics_error'])}); mend it and run again: the "
            f"answers are kept in {result['folder']}",
            file=sys.stderr,
        )
    return 1 if broken or failed == asked else 0


def _place(result: dict[str, Any]) -> str:
    """What the table calls a run, and the folder of its answers: one of these for each compression, in BENCHMARK/."""
    return f"{result['name']}: BENCHMARK/{Path(result['folder']).name}"


def _first_error(file: Path) -> str:
    """Why the first sample of a run's predictions that failed did, and which it was."""
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    row = next(row for row in rows if "error" in row)
    return f"sample {row['index']}: {row['error']}"
