"""`ppe-npu demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ppe_npu.demo import pipeline
from ppe_npu.errors import InputError


def run_demo(args: argparse.Namespace) -> int:
    """Train and compare all methods in miniature."""
    if Path(args.output).is_file():
        raise InputError(f"output {args.output} is a file: name a folder")
    return pipeline.main(args) or 0
