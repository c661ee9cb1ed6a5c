"""`ppe-npu demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ppe_npu.cli.output import print_json
from ppe_npu.demo import motion, pipeline
from ppe_npu.errors import InputError
from ppe_npu.utils.reading import read_json


def run_demo(args: argparse.Namespace) -> int:
    """Train and compare all methods in miniature."""
    args.output = args.output or ("runs/motion" if args.motion else "runs/demo")
    if Path(args.output).is_file():
        raise InputError(f"output {args.output} is a file: name a folder")
    strange = Path(args.output, "data", f"{'base' if args.motion else 'train'}.recipe.json")
    if strange.exists():  # their data, models and results have the same names
        held, other = ("scenes", "--motion") if args.motion else ("--motion", "scenes")
        raise InputError(f"output {args.output} holds a demo of {held}: name another folder for that of {other}")
    check_demos_own(Path(args.output))
    if args.motion and (args.methods or args.full):
        raise InputError("--motion compares two models, without --methods and --full: leave them out")
    if args.seeds < 1:
        raise InputError(f"seeds={args.seeds}: give at least 1")
    code = (motion if args.motion else pipeline).main(args) or 0
    if args.json:
        print_json(args, read_json(Path(args.output, "methods.json" if args.methods else "results.json")))
    return code


def check_demos_own(output: Path) -> None:
    """Raise InputError for a folder that holds something and no demo: a demo writes over, and drops, what it needs."""
    data = output / "data"
    if any(data.glob("*.recipe.json")):
        return
    found = (path for folder in (output, data) if folder.is_dir() for path in sorted(folder.iterdir()))
    drawn = (data, data / "images", data / "clips")  # by one that was stopped while it drew
    strange = next((path for path in found if path not in drawn and not path.name.startswith(".")), None)
    if strange is not None:
        raise InputError(f"output {output} holds {strange.name} and no demo: name a new folder")
