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
_DEVICES = f"{', '.join(DEVICES[:-1])} or {DEVICES[-1]} (default: auto: an NPU, else a GPU, else the CPU)"
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
    _add_train(commands)
    _add_data(commands)
    _add_convert(commands)
    _add_merge_lora(commands)
    _add_export(commands)
    _add_serve(commands)
    _add_eval(commands)
    _add_report(commands)
    _add_describe(commands)
    _add_explore(commands)
    _add_methods(commands)
    _add_parity(commands)
    _add_demo(commands)
    _add_doctor(commands)
    _add_completion(commands)
    return parser


def _add_device(parser: argparse.ArgumentParser, default: str | None = "auto", other: str = "fp32") -> None:
    """default=None: an option that is not given is None, because a recipe or a protocol may set it. other: the default
    dtype, in words for the help."""
    parser.add_argument("--device", default=default, help=_DEVICES)
    dtype = default and "fp32"
    parser.add_argument("--dtype", default=dtype, choices=("fp32", "bf16"), help=f"of the weights (default: {other})")


def _add_compression(parser: argparse.ArgumentParser, several: bool = False) -> None:
    names = "dense, chatunivi, keep_one, ppe, ppe_plus, ppe_cascade or a method that `ppe-npu methods` lists, alone or "
    names += "with settings (divprune:ratio=0.25,positions=ppe), or a JSON file"
    extra = {"nargs": "+"} if several else {}
    parser.add_argument("--compression", metavar="NAME", help=f"{names} (default: the checkpoint's, else ppe)", **extra)
    share = f"share of the visual tokens that is kept, in (0, 1]{'; or several' * several} (default: the compression's)"
    parser.add_argument("--ratio", type=float, help=share, **extra)
    what = "which positions merged tokens keep (default: the compression's)"
    parser.add_argument("--positions", choices=POSITIONS, help=what)
    what = "how many positions a merged token keeps, with positions ppe (default: 8, or the most that fit the model)"
    parser.add_argument("--k", type=int, help=what)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the numbers as JSON; all else goes to standard error")


def _add_bin(parser: argparse.ArgumentParser) -> None:
    what = "also read a model that has only pytorch_model.bin and no safetensors (docs/security.md)"
    parser.add_argument("--allow-bin", action="store_true", help=what)


def _add_base(parser: argparse.ArgumentParser) -> None:
    what = "where --model names an adapter: the model that it was trained on (default: where its base.json says)"
    parser.add_argument("--base", metavar="MODEL", help=what)


def _add_pixels(parser: argparse.ArgumentParser, whose: str = "the checkpoint's", frames: str = "2") -> None:
    """whose, frames: the default bounds and the default frame rate, in words for the help."""
    size = f"height * width of an image or frame after resizing (default: {whose})"
    parser.add_argument("--min-pixels", type=int, help=f"least {size}")
    parser.add_argument("--max-pixels", type=int, help=f"largest {size}")
    parser.add_argument("--fps", type=float, help=f"frames per second of video (default: {frames})")
    parser.add_argument("--nframes", type=int, help="frames of a video; not together with --fps")


def _add_generation(parser: argparse.ArgumentParser) -> None:
    asked = "beside greedy search: name=value such as repetition_penalty=1.05, or checkpoint: all that its "
    what = f"{asked}generation_config.json says (default: nothing of it)"
    parser.add_argument("--generation", nargs="+", metavar="SETTING", help=what)


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="fine-tune; without --model and --data the embedded tiny model, by its own recipe, in about a minute",
    )
    parser.add_argument("--model", help="checkpoint folder or hub id to start from")
    parser.add_argument("--data", nargs="+", help="LLaVA-style .json or .jsonl file(s)")
    parser.add_argument("--data-root", help="what the data's relative paths start from (default: the file's folder)")
    parser.add_argument("--output", help="folder of the run (default: runs/train)")
    _add_compression(parser)
    _add_device(parser, default=None)
    _add_pixels(parser)
    add_options(parser)
    _add_json(parser)
    parser.set_defaults(run="train:run_train")


def _add_data(commands) -> None:
    parser = commands.add_parser("data", help="check training data: what cannot be used, and tokens before and after")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id whose processor is used")
    parser.add_argument("--data", nargs="+", required=True, help="LLaVA-style .json or .jsonl file(s)")
    parser.add_argument("--data-root", help="what the data's relative paths start from (default: the file's folder)")
    what = "records may name files outside of the data root: absolute, by .., or over links"
    parser.add_argument("--allow-outside", action="store_true", help=what)
    _add_bin(parser)
    _add_compression(parser)
    _add_pixels(parser)
    parser.add_argument("--max-length", type=int, help="most tokens of a record after compression (default: any)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that count tokens (default: 0: this one)")
    parser.add_argument("--out", metavar="FOLDER", help="also write data.json, data.md and faults.jsonl there")
    _add_json(parser)
    parser.set_defaults(run="data:run_data")


def _add_convert(commands) -> None:
    what = "bring records of other programs' forms (messages, images, content lists, query, Alpaca) to that of `train`"
    parser = commands.add_parser("convert", help=what)
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help=".json or .jsonl file(s)")
    parser.add_argument("--output", required=True, metavar="FILE.jsonl", help="what is written, a record a line")
    _add_json(parser)
    parser.set_defaults(run="convert:run_convert")


def _add_merge_lora(commands) -> None:
    parser = commands.add_parser("merge-lora", help="add an adapter to the model it was trained on: a plain checkpoint")
    parser.add_argument("--adapter", required=True, help="folder of the adapter: final/, or a whole checkpoint")
    _add_plain_output(parser)
    parser.set_defaults(run="export:run_merge_lora")


def _add_export(commands) -> None:
    parser = commands.add_parser("export", help="write any checkpoint of a run as a plain transformers one")
    what = "final/ or checkpoint-N of a run; with --vllm any checkpoint"
    parser.add_argument("--checkpoint", required=True, help=what)
    _add_plain_output(parser)
    what = "let its config say how it is compressed, so that `vllm serve FOLDER` needs no flag (docs/serving.md)"
    parser.add_argument("--vllm", action="store_true", help=what)
    _add_compression(parser)
    parser.set_defaults(run="export:run_export")


def _add_serve(commands) -> None:
    parser = commands.add_parser("serve", help="start vLLM's OpenAI server with a compressed model (docs/serving.md)")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    _add_bin(parser)
    _add_compression(parser)
    parser.add_argument("vllm", nargs="*", metavar="-- ARGUMENT", help="after -- what vLLM's server takes")
    parser.set_defaults(run="serve:run_serve")


def _add_plain_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--model", help="the adapter's base: folder or hub id (default: where its base.json says)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="to save in (default: as it was trained)")
    _add_bin(parser)


def _add_eval(commands) -> None:
    parser = commands.add_parser("eval", help="benchmark a model with every compression; processes share the work")
    what = "checkpoint folder, adapter of a run, or hub id (default: runs/train/final)"
    parser.add_argument("--model", help=what)
    _add_base(parser)
    what = "names of docs/benchmarks-data.md, or file.py:Class (default: layout)"
    parser.add_argument("--benchmarks", nargs="+", default=["layout"], help=what)
    what = "folder of the benchmarks' data (default: runs/train/data, which `train` makes)"
    parser.add_argument("--data-root", default="runs/train/data", help=what)
    parser.add_argument("--output", default="runs/eval", help="folder of answers and report (default: runs/eval)")
    what = "sizes, frames, prompts, rules: checkpoint, lmms-eval, qwen or vlmevalkit (default: lmms-eval for published "
    what += "benchmarks, checkpoint for others); other options override it"
    parser.add_argument("--protocol", metavar="NAME", help=what)
    what = "where an answer names no option and the scorer draws one: by this seed (default: such an answer is wrong)"
    parser.add_argument("--draws", type=int, metavar="SEED", help=what)
    _add_bin(parser)
    _add_compression(parser, several=True)
    _add_device(parser, default=None, other="fp32 on a CPU, else as the protocol: bf16, but with checkpoint fp32")
    _add_pixels(parser, "the protocol's", "the protocol's")
    parser.set_defaults(device="auto")
    what = "what answers: transformers, or an offline vLLM (pictures only; docs/serving.md) (default: transformers)"
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"), help=what)
    what = 'more arguments for vLLM, as JSON: {"max_model_len": 8192}'
    parser.add_argument("--engine-args", type=_mapping, metavar="JSON", help=what)
    parser.add_argument("--batch-size", type=int, default=64, help="prompts of a batch, at most (default: 64)")
    tokens = "prompt tokens of a batch before compression, at most; a longer prompt is alone (default: 65536)"
    parser.add_argument("--batch-tokens", type=int, default=65_536, help=tokens)
    what = "of an answer, at most (default: as the benchmark says, else 16)"
    parser.add_argument("--max-new-tokens", type=int, help=what)
    what = "after the scores, measure costs in turns on the same prompts, in N rounds or more; 0: do not (default: 5, "
    what += "from 2 on no more than 2 minutes, and not again where nothing changed)"
    parser.add_argument("--cost-rounds", type=int, metavar="N", help=what)
    what = "also run the dense model on smaller input of as many tokens, all samples for each share (default: on)"
    parser.add_argument("--smaller-input", action=argparse.BooleanOptionalAction, default=None, help=what)
    parser.add_argument("--seed", type=int, default=0, help="of sampled answers, set before every batch (default: 0)")
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
        raise argparse.ArgumentTypeError(f'{shown(text)} is no JSON object: write it as {{"max_model_len": 8192}}')
    return found


def _add_report(commands) -> None:
    parser = commands.add_parser("report", help="tables and a picture from the results of evaluations")
    parser.add_argument("folder", nargs="?", default="runs/eval", help="of the evaluations (default: runs/eval)")
    parser.add_argument("--out", metavar="FILE.md", help="the report's file (default: report.md in the folder)")
    parser.add_argument("--title", help="the report's heading (default: it names the folder)")
    _add_json(parser)
    what = "also write one HTML page: sortable tables, a plot, and answers on which two methods differ"
    parser.add_argument("--html", action="store_true", help=what)
    what = "add the tables of papers, apart from ours: ppe, pixelprune, ipcv, pvc or all"
    parser.add_argument("--published", nargs="+", metavar="PAPER", help=what)
    parser.set_defaults(run="evaluate:run_report")


def _add_describe(commands) -> None:
    parser = commands.add_parser("describe", help="ask a model about pictures and videos; then what it cost")
    parser.add_argument("--model", required=True, help="checkpoint folder, adapter of a run, or hub id")
    _add_base(parser)
    parser.add_argument("--image", action="append", default=[], help="a picture; may be given several times")
    parser.add_argument("--video", action="append", default=[], help="a video file; may be given several times")
    asked = "Describe what you see."
    what = f"(default: {asked}) may hold <image> and <video> where they belong; without them the visuals come first"
    parser.add_argument("--prompt", default=asked, help=what)
    _add_bin(parser)
    _add_compression(parser)
    _add_device(parser)
    _add_pixels(parser)
    parser.add_argument("--max-new-tokens", type=int, default=128, help="of the answer, at most (default: 128)")
    _add_generation(parser)
    parser.add_argument("--show", metavar="FILE", help="a picture (.png, .jpg, .webp) to draw the merged groups into")
    parser.add_argument(
        "--token", type=int, help="of --show: the merged token to outline, counted from 0 (default: the largest)"
    )
    _add_json(parser)
    parser.set_defaults(run="describe:run_describe")


def _add_explore(commands) -> None:
    what = "a page on which compression is seen: groups, costs and answers side by side (extra: app)"
    parser = commands.add_parser("explore", help=what)
    what = "checkpoint folder, adapter of a run, or hub id (default: what demo or train left here, else features alone)"
    parser.add_argument("--model", help=what)
    _add_base(parser)
    _add_bin(parser)
    _add_device(parser)
    _add_pixels(parser, frames="8 frames, evenly over the video")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of an answer, at most (default: 64)")
    what = "address that is listened on; others than the default can be reached by other machines (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=what)
    parser.add_argument("--port", type=int, help="that is listened on (default: the first free one from 7860 on)")
    parser.set_defaults(run="explore:run_explore")


def _add_methods(commands) -> None:
    parser = commands.add_parser("methods", help="list all methods: place, what each looks at, budget, paper")
    parser.add_argument("--json", action="store_true", help="as JSON, with every setting's default")
    help_ = "list the rules by which merged tokens keep positions (members=) instead"
    parser.add_argument("--positions", action="store_true", help=help_)
    parser.set_defaults(run="methods:run_methods")


def _add_parity(commands) -> None:
    parser = commands.add_parser("parity", help="compare a device's operators and a tiny model with fp64 on the CPU")
    what = "record: write a bundle of results; check: compare with one (default: run, without files)"
    parser.add_argument("action", nargs="?", default="run", choices=("run", "record", "check"), help=what)
    parser.add_argument("bundle", nargs="?", help="check: the bundle's folder")
    parser.add_argument("--out", help="record: the bundle's folder")
    parser.add_argument("--device", default="auto", help=_DEVICES)
    parser.add_argument("--dtypes", help="to run with: comma-separated (default: fp32,bf16,fp16)")
    _add_json(parser)
    parser.set_defaults(run="parity:run_parity")


def _add_demo(commands) -> None:
    parser = commands.add_parser("demo", help="train and compare all methods on the embedded benchmark")
    parser.add_argument("--device", default="auto", help=_DEVICES)
    what = "folder of data, models and report (default: runs/demo; with --motion runs/motion, or runs/motion-64)"
    parser.add_argument("--output", help=what)
    parser.add_argument("--seeds", type=int, default=1, help="runs with seeds 0, 1, ... (default: 1)")
    parser.add_argument("--full", action="store_true", help="five seeds, two ratios, and the ways of listing members")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="any methods, with one position and PPE's; or all")
    what = "with --methods: leave fine-tuning out"
    parser.add_argument("--training-free", action="store_true", help=what)
    what = "with --methods: fine-tune at these of the three ratios alone"
    parser.add_argument("--tune-ratios", type=float, nargs="+", metavar="RATIO", help=what)
    what = "another demo instead: clips of a board that changes, PVC against frame by frame (docs/pvc.md)"
    parser.add_argument("--motion", action="store_true", help=what)
    what = "with --motion: of a frame, 1 (default) or 64, which takes hours on a CPU"
    parser.add_argument("--tokens", type=int, choices=(1, 64), help=what)
    _add_json(parser)
    parser.set_defaults(run="demo:run_demo")


def _add_doctor(commands) -> None:
    what = "versions, devices, memory, disk, and which operators run here, or why not: send it with a bug report"
    parser = commands.add_parser("doctor", help=what)
    _add_json(parser)
    parser.set_defaults(run="doctor:run_doctor")


def _add_completion(commands) -> None:
    what = "print the script by which a shell completes this command line (extra: completion)"
    parser = commands.add_parser("completion", help=what)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help='bash: eval "$(ppe-npu completion bash)"')
    parser.set_defaults(run="completion:run_completion")
