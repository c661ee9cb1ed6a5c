"""`ppe-npu methods`: lists all methods with their places, what they look at, their budget and their paper; or the rules
by which merged tokens keep positions."""

from __future__ import annotations

import argparse

from ppe_npu.cli.output import print_json
from ppe_npu.methods.base import published
from ppe_npu.methods.listing import Listed
from ppe_npu.methods.positions import rule_named, rule_names

_HEAD = ("method", "place", "looks at", "budget", "paper")


def run_methods(args: argparse.Namespace) -> int:
    """Print one line per method, or all its facts with --json; with --positions, the rules of positions instead."""
    if args.positions:
        whats = {name: rule_named(name).what for name in rule_names()}
        if args.json:
            print_json(args, [{"name": name, "what": what} for name, what in whats.items()])
            return 0
        widest = max(map(len, whats))
        for name, what in whats.items():
            print(f"{name.ljust(widest)}  {what}")
        return 0
    listed = [Listed.of(name) for name in published()]
    if args.json:
        print_json(args, [one.to_dict() for one in listed])
        return 0
    rows = [_HEAD] + [(one.name, ", ".join(one.places), one.looks_at, one.budget, one.source) for one in listed]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0
