"""`ppe-npu eval` and `ppe-npu report`: run benchmarks with several compressions, and write one report on all results.

All input is checked before the weights are read. Any number of processes may run the same command with the same
--output: they share the work (ppe_npu/evaluation/sharing.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.loading import DTYPES, load_model, quiet_transformers
from ppe_npu.cli import common, costs, failures
from ppe_npu.cli.output import print_json, say
from ppe_npu.cli.train import EMBEDDED, FRAMES, write_embedded_data
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks, facts, protocols
from ppe_npu.evaluation.answers import ModelAnswers, answer_settings
from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.evaluation.benchmarks.dataset import Dataset
from ppe_npu.evaluation.decoding import first_edition
from ppe_npu.evaluation.downsampling import SmallerInput
from ppe_npu.evaluation.identity import benchmark_identity, check_settings
from ppe_npu.evaluation.protocols import Protocol
from ppe_npu.evaluation.report import check_place, check_plotting, collect, unfinished, write_report
from ppe_npu.evaluation.runner import Evaluation, new_tokens
from ppe_npu.evaluation.sharing import check_shared
from ppe_npu.evaluation.vllm_engine import Engines, VLLMAnswers, check_engine
from ppe_npu.models import compress
from ppe_npu.utils.escape import printable

DENSE = CompressionConfig.preset("dense")


@dataclass(frozen=True)
class AskedRun:
    """One benchmark with one compression, and the folder of its results. share: the fraction of the tokens that the
    input still has, for the control with smaller input; else None."""

    benchmark: Any
    identity: dict[str, Any]
    config: CompressionConfig
    folder: Path
    max_new_tokens: int
    processor: Any
    share: float | None = None


def run_eval(args: argparse.Namespace) -> int:
    """Evaluate every requested compression on every requested benchmark; print and write the report."""
    _check_arguments(args)
    device, model_path = devices.of_this_process(devices.resolve(_device(args))), _model_path(args)
    check_plotting()
    quiet_transformers()
    checkpoint = common.checkpoint(args, model_path, tiled=True)
    chosen = _chosen(args, model_path, checkpoint)
    if "layout" in args.benchmarks and Path(args.data_root) == EMBEDDED / "data":
        write_embedded_data(EMBEDDED / "data")
    protocol, loaded = _asked_benchmarks(args)
    processor_of = _processors(args, checkpoint, protocol)
    sampling = protocol.sampling(**{key: getattr(args, key) for key in FRAMES})
    values, own = common.generation(args.generation, checkpoint)
    args.dtype = _dtype(args, protocol, device)
    runs, dtype = [], str(DTYPES[args.dtype]).removeprefix("torch.")
    smaller = costs.smaller_input(args, processor_of(loaded[0]))
    known = costs.shares(args, chosen) if smaller else []
    unsaid = {"generation": first_edition(own), "protocol": protocols.load(protocols.CHECKPOINT).recorded()}
    for benchmark in loaded:
        identity, tokens = benchmark_identity(benchmark), new_tokens(benchmark, args.max_new_tokens)
        identity["protocol"] = _told_of(benchmark, protocol, args)
        processor = processor_of(benchmark)
        controls = [] if benchmark.modality == "text" else known
        for config, share in [(config, None) for config in chosen] + [(DENSE, share) for share in controls]:
            folder = Path(args.output) / benchmark.name / _named(config, share)
            runs.append(AskedRun(benchmark, identity, config, folder, tokens, processor, share))
            said = answer_settings(processor, config, str(model_path), dtype, tokens, sampling, args.seed, values)
            check_settings(folder, {**identity, **said, **_said_if_so(args, share)}, unsaid)
    _check_output(Path(args.output))
    model = checkpoint.load(device, args.dtype, load_model)
    engines = Engines(checkpoint, dtype, args.engine_args) if args.engine == "vllm" else None
    answers = partial(_answers, engines, model, sampling, args.seed, values)
    results = _evaluate(model, runs, answers, args)
    late = _as_many_tokens(runs, results, known) if smaller else []
    try:
        results += _evaluate(model, late, answers, args)
        if args.cost_rounds != 0 and devices.process_rank() == 0 and not failures.all_failed(results):
            costs.measure(model, runs + late, args, answers)
    finally:  # stopping the control or the cost pass must not lose the scores
        say(common.whose(args, model_path, chosen))
        code = _told(args, model_path, results)
    return code


def _told(args: argparse.Namespace, model: Path, results: list[dict[str, Any]]) -> int:
    """Print what failed, then the table, which does not show that; the exit code."""
    code, output = failures.tell(results), Path(args.output)
    if devices.process_rank() == 0:
        _report(args, output, output / "report.md", f"Evaluation of {model}", failures.all_failed(results))
        print(f"answers of {', '.join(dict.fromkeys(map(_place, results)))}")
    return code


def _check_output(output: Path) -> None:
    check_shared(output)  # also creates the folder
    check_place(output / "report.md")


def _as_many_tokens(runs: list[AskedRun], results: list[dict[str, Any]], known: list[float]) -> list[AskedRun]:
    """Runs of the control at the shares that were really kept by methods whose share was not known in advance."""
    late = []
    for benchmark in dict.fromkeys(run.folder.parent for run in runs):
        own = [(run, result) for run, result in zip(runs, results) if run.folder.parent == benchmark]
        unsaid = [result for run, result in own if not costs.says_its_share(run.config)]
        for share in costs.kept_shares(unsaid, known):
            late.append(replace(own[0][0], config=DENSE, folder=benchmark / _named(DENSE, share), share=share))
    return late


def _processors(args: argparse.Namespace, checkpoint: common.Checkpoint, protocol: Protocol) -> Callable[[Any], Any]:
    """A function from a benchmark to its processor; benchmarks with the same bounds on pixels share one."""
    sized = cache(partial(common.processor, checkpoint))
    return lambda benchmark: sized(*protocol.of(benchmark.name).pixels(args.min_pixels, args.max_pixels))


def _answers(engines: Engines | None, model: Any, sampling: Any, seed: int, values: Any, run: AskedRun):
    """What answers a run: VLLMAnswers, ModelAnswers or, for the control, SmallerInput."""
    given = (model, run.processor, run.max_new_tokens, sampling, seed, values)
    if engines is not None:
        return VLLMAnswers(*given, engines=engines)
    return ModelAnswers(*given) if run.share is None else SmallerInput(*given, share=run.share)


def _said_if_so(args: argparse.Namespace, share: float | None) -> dict[str, Any]:
    """The settings that record another engine than transformers, and a smaller input; {} if neither applies."""
    other = {"engine": args.engine} if args.engine != "transformers" else {}
    return other if share is None else {**other, "smaller_input": share}


def _device(args: argparse.Namespace) -> str:
    """The device of the transformers model; with --engine vllm, which chooses its own device, the CPU.

    Raises:
        InputError: options that --engine vllm does not support.
    """
    if args.engine == "transformers":
        if args.engine_args:
            raise InputError("--engine-args are for vLLM: add --engine vllm, or leave them out")
        return args.device
    if args.cost_rounds or args.smaller_input:
        raise InputError("--engine vllm supports neither --cost-rounds nor --smaller-input: leave them out")
    if devices.process_count() > 1:
        raise InputError(
            f"--engine vllm in {devices.process_count()} processes would start one vLLM each on the same device: start "
            """one process, with --engine-args '{"tensor_parallel_size": N}'"""
        )
    args.cost_rounds, args.smaller_input = 0, False
    return "cpu"


def _named(config: CompressionConfig, share: float | None) -> str:
    """The name of a method's folder, or of the control's, within the folder of its benchmark."""
    return config.label if share is None else f"smaller_input_{share:g}"


def _model_path(args: argparse.Namespace) -> Path:
    """The named checkpoint; by default the embedded run's."""
    path = Path(args.model) if args.model else EMBEDDED / "final"
    if args.model is None and not path.is_dir():
        raise InputError(f"{path} does not exist: run `ppe-npu train` first, or name a checkpoint with --model")
    return path


def run_report(args: argparse.Namespace) -> int:
    """Write a report on all results in a folder."""
    check_plotting()
    folder = Path(args.folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name the --output of an evaluation")
    out = Path(args.out) if args.out else folder / "report.md"
    if out.suffix != ".md":
        raise InputError(f"--out {out} is not a .md file: name one, beside which the .json and .png are written")
    if out.stem in ("results", "settings", "costs"):
        raise InputError(f"--out {out}: {out.stem}.json is the name of an evaluation's own file: name another .md file")
    check_place(out, args.html)
    _report(args, folder, out, args.title or f"Evaluation in {folder}")
    return 0


def _asked_benchmarks(args: argparse.Namespace) -> tuple[Protocol, list[Any]]:
    """The protocol, and the benchmarks that are run with it. If no protocol is named and one of this package's
    benchmarks on published data is run, it is the protocol that papers on compression use.

    Raises:
        InputError: a benchmark cannot be loaded, or --draws is given though no scoring rule draws.
    """
    if args.protocol is not None:
        protocol = protocols.load(args.protocol)
    else:
        published = set(args.benchmarks) & set(registry.OURS) - set(registry.EMBEDDED)
        protocol = protocols.load(protocols.PUBLISHED if published else protocols.CHECKPOINT)
    if args.draws is not None:
        protocol = replace(protocol, draws=args.draws)
    if devices.process_rank() == 0 and protocol.name != protocols.CHECKPOINT:
        print(f"ppe-npu: protocol {protocol.name} ({protocol.version}): {protocol.what}", file=sys.stderr)
    loaded = load_benchmarks(args.benchmarks, args.data_root, protocol)
    if args.draws is not None and not any(map(_draws, loaded)):
        raise InputError(
            f"--draws {args.draws}: no rule of protocol {protocol.name} draws for these benchmarks: leave it out"
        )
    return protocol, loaded


def _draws(benchmark: Any) -> bool:
    return isinstance(benchmark, Dataset) and benchmark.may_draw()


def _told_of(benchmark: Any, protocol: Protocol, args: argparse.Namespace) -> dict[str, Any]:
    """What a run records of the protocol and the options that override it; draws is None if its rule never draws."""
    recorded = protocol.of(benchmark.name).recorded({key: getattr(args, key) for key in (*FRAMES, "max_new_tokens")})
    return recorded if _draws(benchmark) else {**recorded, "draws": None}


def _dtype(args: argparse.Namespace, protocol: Protocol, device: Any) -> str:
    """The dtype: --dtype if given, else the protocol's if there is an accelerator, else fp32."""
    return args.dtype or (not devices.on_cpu(device) and protocol.dtype) or "fp32"


def load_benchmarks(names: list[str], data_root: str, protocol: Protocol | None = None) -> list[Any]:
    """Load all named benchmarks.

    Raises:
        InputError: some cannot be loaded (the message gives the reason for each of them), or a name is given twice.
    """
    loaded, problems = [], []
    for name in names:
        try:
            loaded.append(benchmarks.load(registry.named_by(protocol, name), data_root))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("; ".join(dict.fromkeys(problems)))
    called = [benchmark.name for benchmark in loaded]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise InputError(f"--benchmarks: {', '.join(twice)} is named twice: give every benchmark its own name")
    for benchmark in loaded:
        registry.ask_by(protocol, benchmark)
    return loaded


def _check_arguments(args: argparse.Namespace) -> None:
    if Path(args.output).is_file():
        raise InputError(f"output {args.output} is a file: name a folder")
    for option, least in (("batch_size", 1), ("batch_tokens", 1), ("max_new_tokens", 1), ("cost_rounds", 0)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise InputError(f"--{option.replace('_', '-')} {value} must be at least {least}")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed {args.seed} must be in [0, 2**32)")


def _chosen(args: argparse.Namespace, model: Path, checkpoint: common.Checkpoint) -> list[CompressionConfig]:
    """Every requested compression at every requested ratio; dense only once. If neither model nor compression is named,
    dense is added first, so that the embedded model's own compression can be compared with it."""
    configs = [DENSE] if args.model is None and args.compression is None else []
    for ratio in args.ratio or [None]:
        configs += common.compressions(argparse.Namespace(**{**vars(args), "ratio": ratio}), model)
    configs = common.fitted(checkpoint, configs)
    if args.engine == "vllm":
        check_engine(checkpoint, configs, args.engine_args)
    labels: dict[str, CompressionConfig] = {}
    for config in configs:
        if labels.setdefault(config.label, config) != config:
            raise InputError(f"--compression: two settings are both called {config.label}: evaluate them one by one")
    return list(labels.values())


def _evaluate(
    model: Any, runs: list[AskedRun], answers: Callable[[AskedRun], ModelAnswers], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """The results of all runs, in order. The next run begins while other processes finish the last samples of one."""
    results: list[dict[str, Any] | None] = []
    with contextlib.ExitStack() as stack:
        evaluations = []
        for asked in runs:
            compress(model, asked.config)
            evaluation = Evaluation(
                answers(asked),
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


def _report(args: argparse.Namespace, folder: Path, out: Path, title: str, untold: bool = False) -> None:
    """Write a report on a folder and print its table, unless it is `untold`."""
    html, papers = getattr(args, "html", False), getattr(args, "published", None)
    results = collect(folder)
    path, table = write_report(results, out, title, (), unfinished(folder), html, papers)
    for name in facts.of_changed_code(results):
        say(f"{printable(name)}: its code changed between its runs, so their scores do not compare: run all again")
    if html:
        print(f"HTML page: {path.with_suffix('.html')}")
    shown = "" if untold else f"{table}\n\n"
    print(f"{shown}written to {path}, with {path.with_suffix('.json').name} and {path.with_suffix('.png').name}")
    if args.json:
        print_json(args, json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))


def _place(result: dict[str, Any]) -> str:
    """A run's name in the table, and the folder of its answers. BENCHMARK stands for the folder of any benchmark."""
    return f"{result['name']}: BENCHMARK/{Path(result['folder']).name}"
