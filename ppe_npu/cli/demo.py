"""`ppe-npu demo`: checks the output folder and runs a demo (ppe_npu/demo) there."""

from __future__ import annotations

import argparse
from pathlib import Path

from ppe_npu.cli.output import print_json
from ppe_npu.demo import motion, pipeline
from ppe_npu.errors import InputError
from ppe_npu.utils.reading import read_json

# Files of a demo, which exist from its first minute on: pictures, then their recipes, then models.
_OF_DEMOS = (
    "data/images/base-0*",
    "data/clips/train-0*",
    "data/*.recipe.json",
    "seed*/*/made_from.json",
    "seed*/*/config.json",
)
_WRITTEN = ("data/*.jsonl", "seed*/*", "report.*", "results.json", "methods.*")


def run_demo(args: argparse.Namespace) -> int:
    """Train and compare all methods in miniature."""
    args.output = args.output or _folder(args)
    if Path(args.output).is_file():
        raise InputError(f"output {args.output} is a file: name a folder")
    strange = Path(args.output, "data", f"{'base' if args.motion else 'train'}.recipe.json")
    if strange.exists():  # both demos use the same names for data, models and results
        held, other = ("scenes", "clips") if args.motion else ("clips", "scenes")
        raise InputError(f"output {args.output} holds a demo with {held}: name another folder for the one with {other}")
    check_demos_own(Path(args.output))
    if args.motion and (args.methods or args.full):
        raise InputError("--motion compares two models of its own: leave --methods and --full out")
    if args.tokens is not None and not args.motion:
        raise InputError(f"--tokens {args.tokens} needs --motion: add --motion, or leave it out")
    if (args.training_free or args.tune_ratios) and not args.methods:
        asked = "--training-free" if args.training_free else "--tune-ratios"
        raise InputError(f"{asked} needs --methods: add --methods all, or leave it out")
    if args.seeds < 1:
        raise InputError(f"seeds={args.seeds}: give at least 1")
    code = (motion if args.motion else pipeline).main(args) or 0
    if args.json:
        print_json(args, read_json(Path(args.output, "methods.json" if args.methods else "results.json")))
    return code


def _folder(args: argparse.Namespace) -> str:
    if not args.motion:
        return "runs/demo"
    return "runs/motion" if args.tokens in (None, motion.SMALL.tokens) else f"runs/motion-{args.tokens}"


def check_demos_own(output: Path) -> None:
    """Raise InputError if a folder is not a demo's, but holds files that a demo would overwrite or delete."""
    if any(path for name in _OF_DEMOS for path in output.glob(name)):
        return
    strange = next((path for name in _WRITTEN for path in sorted(output.glob(name))), None)
    if strange is not None:
        raise InputError(f"output {output} holds {strange.name} but no demo: name a new folder")
