"""`ppe-npu demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ppe_npu.demo import motion, pipeline
from ppe_npu.errors import InputError


def run_demo(args: argparse.Namespace) -> int:
    """Train and compare all methods in miniature."""
    args.output = args.output or ("runs/motion" if args.motion else "runs/demo")
    if Path(args.output).is_file():
        raise InputError(f"output {args.output} is a file: name a folder")
    if args.motion and (args.methods or args.full):
        raise InputError("--motion compares two models, without --methods and --full: leave them out")
    if args.seeds < 1:
        raise InputError(f"seeds={args.seeds}: give at least 1")
    return (motion if args.motion else pipeline).main(args) or 0
