"""ppe-npu train | eval | describe | parity | demo.

A user's mistake is one line on stderr and exit code 2; PPE_NPU_DEBUG=1 shows where it was raised. Only argparse is
imported here: each command loads what it needs when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

DEVICES = "auto, cpu, cuda or npu"
# `import torch` imports torch_npu, and fails with it, whatever the device.
_NO_CANN = (
    "torch cannot be imported, because torch_npu is installed and finds no CANN: on an Ascend machine source CANN's "
    "set_env.sh, anywhere else add EMULATE=1 to the make target; TORCH_DEVICE_BACKEND_AUTOLOAD=0 does without an NPU"
)


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ppe-npu: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (it ran and failed) or 2 (it was asked for something impossible)."""
    args = build_parser().parse_args(argv)
    # Read when torch is loaded, below. By default torch's threads spin while they wait; on cores that are shared with
    # other work that cost a factor of 2 to 10 on the tiny model, and waiting asleep cost nothing that was measured.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("ppe-npu: stopped", file=sys.stderr)
        return 130
    # InputError, DeviceError, a config's complaint; a missing package; a folder that cannot be written
    except (ValueError, ImportError, OSError) as error:
        return _complain(error, 2)
    except RuntimeError as error:
        if str(error).startswith("Failed to load the backend extension: torch_npu"):
            return _complain(RuntimeError(_NO_CANN), 2)
        from ppe_npu.errors import TrainingError

        if not isinstance(error, TrainingError):
            raise
        return _complain(error, 1)


def _complain(error: Exception, code: int) -> int:
    if os.environ.get("PPE_NPU_DEBUG"):
        raise error
    text = str(error)
    if text.startswith("Caught ") and "DataLoader worker" in text:  # torch puts the worker's traceback into the message
        text = text.strip().splitlines()[-1].partition(": ")[2]
    print(f"ppe-npu: error: {' '.join(text.split())}", file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="ppe-npu", description="Visual-token compression for multimodal LLMs.")
    from ppe_npu import __version__

    parser.add_argument("--version", action="version", version=f"ppe-npu {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_train(commands)
    _add_eval(commands)
    _add_describe(commands)
    _add_parity(commands)
    _add_demo(commands)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help=f"{DEVICES} (default: auto)")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))


def _add_compression(parser: argparse.ArgumentParser, several: bool = False) -> None:
    names = "dense, chatunivi, keep_one, ppe, or a JSON file"
    extra = {"nargs": "+"} if several else {}
    parser.add_argument("--compression", metavar="NAME", help=f"{names} (default: the checkpoint's, else ppe)", **extra)
    parser.add_argument("--ratio", type=float, help="share of the visual tokens that is kept, in (0, 1]")
    parser.add_argument("--k", type=int, help="positions that a merged token keeps (ppe)")


def _add_pixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--min-pixels", type=int, help="least height * width of an image or frame after resizing")
    parser.add_argument("--max-pixels", type=int, help="largest height * width of an image or frame after resizing")
    parser.add_argument("--fps", type=float, help="frames per second of video (default: 2)")
    parser.add_argument("--nframes", type=int, help="frames of a video; not together with --fps")


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train", help="fine-tune with compression; without arguments: the embedded tiny model, about a minute"
    )
    parser.add_argument("--model", help="checkpoint folder or hub id to start from")
    parser.add_argument("--data", nargs="+", help="LLaVA-style .json or .jsonl file(s)")
    parser.add_argument("--data-root", help="what the data's relative paths start from (default: the file's folder)")
    parser.add_argument("--output", default="runs/train", help="(default: runs/train)")
    _add_compression(parser)
    _add_device(parser)
    _add_pixels(parser)
    parser.add_argument("--epochs", type=float, help="(default: 1)")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--batch-size", type=int, help="(default: 1)")
    parser.add_argument("--gradient-accumulation", type=int, help="(default: 1)")
    parser.add_argument("--learning-rate", type=float, help="(default: 1e-5)")
    parser.add_argument("--warmup-steps", type=int, help="(default: 0)")
    parser.add_argument("--schedule", help="constant, linear, cosine or stable_decay (default: cosine)")
    parser.add_argument("--weight-decay", type=float, help="(default: 0)")
    parser.add_argument("--max-grad-norm", type=float, help="(default: 1)")
    parser.add_argument("--seed", type=int, help="(default: 0)")
    parser.add_argument("--save-steps", type=int, help="a checkpoint every so many steps (default: none)")
    parser.add_argument("--logging-steps", type=int, help="(default: 10)")
    parser.add_argument("--num-workers", type=int, help="(default: 0)")
    parser.add_argument("--gradient-checkpointing", action="store_true", default=None)
    parser.add_argument("--fused-adamw", action="store_true", default=None, help="the device's fused AdamW")
    parser.add_argument("--deepspeed", metavar="FILE", help="DeepSpeed's JSON file, for runs started by torchrun")
    parser.add_argument(
        "--resume", action="store_true", default=None, help="go on from the last whole checkpoint in --output"
    )
    parser.add_argument("--overwrite", action="store_true", default=None, help="drop an earlier run in --output")
    parser.set_defaults(run=_train)


def _add_eval(commands) -> None:
    parser = commands.add_parser("eval", help="benchmark a model, one run per compression, with a report")
    parser.add_argument("--model", help="checkpoint folder or hub id (default: runs/train/final)")
    parser.add_argument("--benchmarks", nargs="+", default=["layout"], help="(default: layout)")
    parser.add_argument(
        "--data-root", default="runs/train/data", help="the benchmarks' data (default: that of `train`)"
    )
    parser.add_argument("--output", default="runs/eval", help="(default: runs/eval)")
    _add_compression(parser, several=True)
    _add_device(parser)
    _add_pixels(parser)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.set_defaults(run=_eval)


def _add_describe(commands) -> None:
    parser = commands.add_parser("describe", help="ask a model about pictures and videos; then what it cost")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--image", action="append", default=[], help="a picture; may be given several times")
    parser.add_argument("--video", action="append", default=[], help="a video file; may be given several times")
    parser.add_argument(
        "--prompt",
        default="Describe what you see.",
        help="may hold <image> and <video> where they belong; without them the visuals come first",
    )
    _add_compression(parser)
    _add_device(parser)
    _add_pixels(parser)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.set_defaults(run=_describe)


def _add_parity(commands) -> None:
    parser = commands.add_parser("parity", help="compare a device's operators and a tiny model with fp64 on the CPU")
    what = "record: write a bundle of results; check: compare with one (default: run, without files)"
    parser.add_argument("action", nargs="?", default="run", choices=("run", "record", "check"), help=what)
    parser.add_argument("bundle", nargs="?", help="the bundle's folder, to check")
    parser.add_argument("--out", help="the bundle's folder, to record")
    parser.add_argument("--device", default="auto", help=f"{DEVICES} (default: auto)")
    parser.add_argument("--dtypes", help="of a run: comma-separated (default: fp32,bf16,fp16)")
    parser.set_defaults(run=_parity)


def _add_demo(commands) -> None:
    parser = commands.add_parser("demo", help="train and compare all methods on the embedded benchmark")
    parser.add_argument("--device", default="auto", help=f"{DEVICES} (default: auto)")
    parser.add_argument("--output", default="runs/demo", help="(default: runs/demo)")
    parser.add_argument("--seeds", type=int, default=1, help="runs with seeds 0, 1, ... (default: 1)")
    parser.add_argument("--full", action="store_true", help="five seeds, two ratios, and the ways of listing members")
    parser.set_defaults(run=_demo)


def _train(args: argparse.Namespace) -> int:
    from ppe_npu.commands import run_train

    return run_train(args)


def _eval(args: argparse.Namespace) -> int:
    from ppe_npu.commands import run_eval

    return run_eval(args)


def _describe(args: argparse.Namespace) -> int:
    from ppe_npu.describe import run_describe

    return run_describe(args)


def _parity(args: argparse.Namespace) -> int:
    from ppe_npu.commands import run_parity

    return run_parity(args)


def _demo(args: argparse.Namespace) -> int:
    if Path(args.output).is_file():
        raise ValueError(f"output {args.output} is a file: name a folder")
    from ppe_npu.demo import pipeline

    return pipeline.main(args) or 0


if __name__ == "__main__":
    sys.exit(main())
