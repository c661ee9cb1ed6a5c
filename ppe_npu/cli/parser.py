"""All commands and their options. Each command names the function that runs it, as module:function of ppe_npu.cli."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from ppe_npu.cli.train import add_options
from ppe_npu.config import POSITIONS
from ppe_npu.errors import shown
from ppe_npu.utils.escape import printable

DEVICES = ("auto", "cpu", "cuda", "npu")
_DEVICES = f"{', '.join(DEVICES[:-1])} or {DEVICES[-1]}; auto takes an NPU, else a GPU, else the CPU (default: auto)"
_LONGEST = 500  # characters of an error message


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line of limited length, and which accepts options and positional arguments
    in any order, as argparse does from Python 3.13 on."""

    def _match_arguments_partial(self, actions: Sequence[argparse.Action], arg_strings_pattern: str) -> list[int]:
        counts = super()._match_arguments_partial(actions, arg_strings_pattern)
        while counts and not counts[-1] and "A" in arg_strings_pattern[sum(counts) :]:
            counts.pop()  # an optional positional matches nothing only when no positional words are left
        return counts

    def error(self, message: str) -> NoReturn:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]}...{message[-_LONGEST // 2 :]}"
        self.exit(2, f"ppe-npu: error: {printable(message)} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="ppe-npu", description="Visual-token compression for multimodal LLMs.")
    from ppe_npu import __version__

    parser.add_argument("--version", action="version", version=f"ppe-npu {__version__}")
    # DeepSpeed's launcher puts this before the command. It is ignored: the environment has the same number.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(metavar="command", required=True)
    for add in (
        *(_add_train, _add_data, _add_convert, _add_merge_lora, _add_export, _add_serve, _add_eval, _add_report),
        *(_add_describe, _add_explore, _add_methods, _add_parity, _add_demo, _add_doctor, _add_completion),
    ):
        add(commands)
    return parser


def _add_device(parser: argparse.ArgumentParser, default: str | None = "auto", other: str = "fp32") -> None:
    """default=None: an option that is not given is None, because a recipe or a protocol may set it. other: the default
    dtype, in words for the help."""
    parser.add_argument("--device", default=default, help=_DEVICES)
    what = f"dtype of the weights (default: {other})"
    parser.add_argument("--dtype", default=default and "fp32", choices=("fp32", "bf16"), help=what)


def _add_compression(parser: argparse.ArgumentParser, several: bool = False) -> None:
    names = "dense, chatunivi, keep_one, ppe, ppe_plus, ppe_cascade or any method listed by `ppe-npu methods`, alone "
    names += "or with settings (divprune:ratio=0.25,positions=ppe), or a JSON file"
    extra = {"nargs": "+"} if several else {}
    parser.add_argument("--compression", metavar="NAME", help=f"{names} (default: the checkpoint's, else ppe)", **extra)
    share = f"fraction of the visual tokens to keep, in (0, 1]{', or several' * several} (default: the compression's)"
    parser.add_argument("--ratio", type=float, help=share, **extra)
    what = "positions that merged tokens keep (default: the compression's)"
    parser.add_argument("--positions", choices=POSITIONS, help=what)
    what = "number of positions per merged token if positions is ppe (default: 8, or the most that the model allows)"
    parser.add_argument("--k", type=int, help=what)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print results as JSON; all else goes to standard error")


def _add_bin(parser: argparse.ArgumentParser) -> None:
    what = "also read a model that has only pytorch_model.bin and no safetensors (docs/security.md)"
    parser.add_argument("--allow-bin", action="store_true", help=what)


def _add_base(parser: argparse.ArgumentParser) -> None:
    what = "if --model is an adapter, the model that it was trained on (default: the one in its base.json)"
    parser.add_argument("--base", metavar="MODEL", help=what)


def _add_pixels(parser: argparse.ArgumentParser, whose: str = "the checkpoint's", frames: str = "2") -> None:
    """Add the options for the size of images and frames, and for the choice of frames.

    Args:
        whose: words for the help that say where the default sizes come from.
        frames: the same for the default number of frames per second.
    """
    size = f"height * width of an image or frame after resizing (default: {whose})"
    parser.add_argument("--min-pixels", type=int, help=f"minimum {size}")
    parser.add_argument("--max-pixels", type=int, help=f"maximum {size}")
    parser.add_argument("--fps", type=float, help=f"frames to take per second of video (default: {frames})")
    parser.add_argument("--nframes", type=int, help="number of frames to take from a video, instead of --fps")


def _add_generation(parser: argparse.ArgumentParser) -> None:
    what = "settings that change greedy search: name=value, such as repetition_penalty=1.05, or checkpoint for all "
    what += "those in its generation_config.json (default: none)"
    parser.add_argument("--generation", nargs="+", metavar="SETTING", help=what)


def _command(commands, name: str, what: str) -> argparse.ArgumentParser:
    """The parser of one command, which its own --help describes as the list of commands does."""
    return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")


def _add_train(commands) -> None:
    what = "fine-tune a model; without --model and --data, train the embedded tiny model in about a minute"
    parser = _command(commands, "train", what)
    parser.add_argument("--model", help="checkpoint folder or hub id to start from")
    parser.add_argument("--data", nargs="+", help="LLaVA-style .json or .jsonl file(s)")
    parser.add_argument("--data-root", help="base folder of relative paths in the data (default: the file's folder)")
    parser.add_argument("--output", help="output folder of the run (default: runs/train)")
    _add_compression(parser)
    _add_device(parser, default=None)
    _add_pixels(parser)
    add_options(parser)
    _add_json(parser)
    parser.set_defaults(run="train:run_train")


def _add_data(commands) -> None:
    parser = _command(commands, "data", "check training data: find unusable records, count tokens")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id that provides the processor")
    parser.add_argument("--data", nargs="+", required=True, help="LLaVA-style .json or .jsonl file(s)")
    parser.add_argument("--data-root", help="base folder of relative paths in the data (default: the file's folder)")
    what = "let records name files outside the data root: by absolute paths, by .. or through links"
    parser.add_argument("--allow-outside", action="store_true", help=what)
    _add_bin(parser)
    _add_compression(parser)
    _add_pixels(parser)
    what = "maximum number of tokens of a record after compression (default: no limit)"
    parser.add_argument("--max-length", type=int, help=what)
    parser.add_argument("--num-workers", type=int, default=0, help="processes that count tokens (default: 0, this one)")
    parser.add_argument("--out", metavar="FOLDER", help="also write data.json, data.md and faults.jsonl to this folder")
    _add_json(parser)
    parser.set_defaults(run="data:run_data")


def _add_convert(commands) -> None:
    what = "convert records in other formats (messages, images, content lists, query, Alpaca) to the one of `train`"
    parser = _command(commands, "convert", what)
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help=".json or .jsonl file(s) to convert")
    parser.add_argument("--output", required=True, metavar="FILE.jsonl", help="file to write, one record per line")
    _add_json(parser)
    parser.set_defaults(run="convert:run_convert")


def _add_merge_lora(commands) -> None:
    parser = _command(commands, "merge-lora", "merge an adapter into the model it was trained on")
    parser.add_argument("--adapter", required=True, help="adapter folder: final/, or a complete checkpoint")
    _add_plain_output(parser)
    parser.set_defaults(run="export:run_merge_lora")


def _add_export(commands) -> None:
    parser = _command(commands, "export", "write a checkpoint of a run as a plain transformers checkpoint")
    what = "final/ or checkpoint-N of a run; with --vllm, any checkpoint"
    parser.add_argument("--checkpoint", required=True, help=what)
    _add_plain_output(parser)
    what = "record the compression in config.json, so that `vllm serve FOLDER` needs no flags (docs/serving.md)"
    parser.add_argument("--vllm", action="store_true", help=what)
    _add_compression(parser)
    parser.set_defaults(run="export:run_export")


def _add_serve(commands) -> None:
    parser = _command(commands, "serve", "start vLLM's OpenAI server with a compressed model (docs/serving.md)")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    _add_bin(parser)
    _add_compression(parser)
    parser.add_argument("vllm", nargs="*", metavar="-- ARGUMENT", help="arguments for vLLM's server, after --")
    parser.set_defaults(run="serve:run_serve")


def _add_plain_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, help="new or empty folder to write to")
    parser.add_argument("--model", help="base of the adapter: folder or hub id (default: the one in its base.json)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="dtype to save in (default: as it was trained)")
    _add_bin(parser)


def _add_eval(commands) -> None:
    parser = _command(commands, "eval", "benchmark a model with several compressions; processes share the work")
    what = "checkpoint folder, adapter of a run, or hub id (default: runs/train/final)"
    parser.add_argument("--model", help=what)
    _add_base(parser)
    what = "names listed in docs/benchmarks-data.md, or file.py:Class (default: layout)"
    parser.add_argument("--benchmarks", nargs="+", default=["layout"], help=what)
    what = "folder of the benchmark data (default: runs/train/data, written by `train`)"
    parser.add_argument("--data-root", default="runs/train/data", help=what)
    parser.add_argument("--output", default="runs/eval", help="folder for answers and report (default: runs/eval)")
    what = "sizes, frames, prompts and scoring rules: checkpoint, lmms-eval, qwen or vlmevalkit; other options "
    what += "override them (default: lmms-eval for published benchmarks, checkpoint for others)"
    parser.add_argument("--protocol", metavar="NAME", help=what)
    what = "seed for scorers that draw an option when an answer names none (default: such an answer is wrong)"
    parser.add_argument("--draws", type=int, metavar="SEED", help=what)
    _add_bin(parser)
    _add_compression(parser, several=True)
    _add_device(parser, default=None, other="fp32 on a CPU, else the protocol's: bf16, or fp32 for checkpoint")
    _add_pixels(parser, "the protocol's", "the protocol's")
    parser.set_defaults(device="auto")
    what = "inference engine; vllm is offline vLLM, for pictures only, see docs/serving.md (default: transformers)"
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"), help=what)
    what = 'additional arguments for vLLM as JSON, such as {"max_model_len": 8192}'
    parser.add_argument("--engine-args", type=_mapping, metavar="JSON", help=what)
    parser.add_argument("--batch-size", type=int, default=64, help="maximum number of prompts per batch (default: 64)")
    tokens = "maximum number of prompt tokens per batch before compression; a longer prompt runs alone (default: 65536)"
    parser.add_argument("--batch-tokens", type=int, default=65_536, help=tokens)
    what = "maximum number of new tokens per answer (default: the benchmark's, else 16)"
    parser.add_argument("--max-new-tokens", type=int, help=what)
    what = "after the scores, measure costs in at least N rounds of all methods on the same prompts; 0 skips this "
    what += "(default: 5, or at least 2 if they take over 2 minutes; skipped if nothing changed)"
    parser.add_argument("--cost-rounds", type=int, metavar="N", help=what)
    what = "also run the dense model on all samples made smaller to as many tokens, for each fraction (default: on)"
    parser.add_argument("--smaller-input", action=argparse.BooleanOptionalAction, default=None, help=what)
    parser.add_argument("--seed", type=int, default=0, help="seed for sampling, set before every batch (default: 0)")
    _add_generation(parser)
    _add_json(parser)
    parser.set_defaults(run="evaluate:run_eval")


def _mapping(text: str) -> dict[str, Any]:
    """A JSON object, parsed from the command line."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{shown(text)} is not a JSON object: write it as {{"max_model_len": 8192}}')
    return found


def _add_report(commands) -> None:
    parser = _command(commands, "report", "write a report with tables and a plot from evaluation results")
    parser.add_argument("folder", nargs="?", default="runs/eval", help="folder of the evaluations (default: runs/eval)")
    parser.add_argument("--out", metavar="FILE.md", help="file for the report (default: report.md in the folder)")
    parser.add_argument("--title", help="heading of the report (default: one that names the folder)")
    _add_json(parser)
    what = "also write an HTML page with sortable tables, a plot, and the answers on which two methods differ"
    parser.add_argument("--html", action="store_true", help=what)
    what = "add tables published in papers, separate from the measured ones: ppe, pixelprune, ipcv, pvc or all"
    parser.add_argument("--published", nargs="+", metavar="PAPER", help=what)
    parser.set_defaults(run="evaluate:run_report")


def _add_describe(commands) -> None:
    parser = _command(commands, "describe", "ask a model about pictures and videos, and print its costs")
    parser.add_argument("--model", required=True, help="checkpoint folder, adapter of a run, or hub id")
    _add_base(parser)
    parser.add_argument("--image", action="append", default=[], help="picture file; may be given several times")
    parser.add_argument("--video", action="append", default=[], help="video file; may be given several times")
    asked = "Describe what you see."
    what = f"question, with <image> and <video> where visuals belong; without these, they come first (default: {asked})"
    parser.add_argument("--prompt", default=asked, help=what)
    _add_bin(parser)
    _add_compression(parser)
    _add_device(parser)
    _add_pixels(parser)
    parser.add_argument("--max-new-tokens", type=int, default=128, help="maximum number of new tokens (default: 128)")
    _add_generation(parser)
    parser.add_argument("--show", metavar="FILE", help="draw the merged groups to this picture (.png, .jpg, .webp)")
    parser.add_argument(
        "--token", type=int, help="merged token that --show outlines, counted from 0 (default: the largest)"
    )
    _add_json(parser)
    parser.set_defaults(run="describe:run_describe")


def _add_explore(commands) -> None:
    what = "serve a page that shows compression at work: groups, costs and answers side by side (extra: app)"
    parser = _command(commands, "explore", what)
    what = "checkpoint folder, adapter of a run, or hub id (default: a model left here by `demo` or `train`, else "
    what += "random weights, which show groups but no answers)"
    parser.add_argument("--model", help=what)
    _add_base(parser)
    _add_bin(parser)
    _add_device(parser)
    _add_pixels(parser, frames="8 frames, spread evenly over the video")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="maximum number of new tokens (default: 64)")
    what = "address to listen on; with any but the default, other machines can reach the page (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=what)
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860 on)")
    parser.set_defaults(run="explore:run_explore")


def _add_methods(commands) -> None:
    parser = _command(commands, "methods", "list all methods with their places, inputs, budgets and papers")
    parser.add_argument("--json", action="store_true", help="print the list as JSON, with the default of every setting")
    help_ = "instead list the rules that choose the positions of merged tokens (members=)"
    parser.add_argument("--positions", action="store_true", help=help_)
    parser.set_defaults(run="methods:run_methods")


def _add_parity(commands) -> None:
    parser = _command(commands, "parity", "compare a device's operators and a tiny model with fp64 on the CPU")
    what = "run compares with fp64, record writes results to a bundle, check compares with a bundle (default: run)"
    parser.add_argument("action", nargs="?", default="run", choices=("run", "record", "check"), help=what)
    parser.add_argument("bundle", nargs="?", help="folder of the bundle to check against")
    parser.add_argument("--out", help="folder that record writes the bundle to")
    parser.add_argument("--device", default="auto", help=_DEVICES)
    parser.add_argument("--dtypes", help="comma-separated dtypes to run with (default: fp32,bf16,fp16)")
    _add_json(parser)
    parser.set_defaults(run="parity:run_parity")


def _add_demo(commands) -> None:
    parser = _command(commands, "demo", "train and compare all methods on the embedded benchmark")
    parser.add_argument("--device", default="auto", help=_DEVICES)
    what = "folder for data, models and report (default: runs/demo; with --motion, runs/motion or runs/motion-64)"
    parser.add_argument("--output", help=what)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds: 0, 1, ... (default: 1)")
    parser.add_argument("--full", action="store_true", help="five seeds, two ratios, and more ways of listing members")
    what = "compare these methods, or all, each with one position and with PPE's positions"
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=what)
    what = "with --methods, skip fine-tuning"
    parser.add_argument("--training-free", action="store_true", help=what)
    what = "with --methods, fine-tune only at these ratios, out of 0.5, 0.25 and 0.1 (default: all three)"
    parser.add_argument("--tune-ratios", type=float, nargs="+", metavar="RATIO", help=what)
    what = "run another demo: PVC against frame by frame, on clips of a board that changes (docs/pvc.md)"
    parser.add_argument("--motion", action="store_true", help=what)
    what = "with --motion, tokens per frame: 1, or 64, which takes hours on a CPU (default: 1)"
    parser.add_argument("--tokens", type=int, choices=(1, 64), help=what)
    _add_json(parser)
    parser.set_defaults(run="demo:run_demo")


def _add_doctor(commands) -> None:
    what = "print versions, devices, memory, disk, and which operators run here or why not, for bug reports"
    parser = _command(commands, "doctor", what)
    _add_json(parser)
    parser.set_defaults(run="doctor:run_doctor")


def _add_completion(commands) -> None:
    what = "print a script that lets a shell complete this command line (extra: completion)"
    parser = _command(commands, "completion", what)
    what = 'shell to complete for; in bash, run eval "$(ppe-npu completion bash)"'
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help=what)
    parser.set_defaults(run="completion:run_completion")
