"""`ppe-npu completion SHELL`: the script by which a shell completes this command line; shtab writes it."""

from __future__ import annotations

import argparse

from ppe_npu.utils.optional import optional


def run_completion(args: argparse.Namespace) -> int:
    """Print the script."""
    shtab = optional("shtab", "shell completion", "ppe-npu[completion]")
    from ppe_npu.cli.parser import build_parser

    print(shtab.complete(build_parser(), shell=args.shell))
    return 0
