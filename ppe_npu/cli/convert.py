"""`ppe-npu convert`: converts training data from other programs' formats to the format of `ppe-npu train`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ppe_npu.cli.output import check_apart, print_json
from ppe_npu.training.convert import convert_files, write_converted
from ppe_npu.training.data import complaint


def run_convert(args: argparse.Namespace) -> int:
    """Write the records that can be converted; exit code 1 if some cannot."""
    output = Path(args.output)
    check_apart("--output", output, args.data)
    found = convert_files(args.data)
    if found.records:
        write_converted(found, output)
    total = len(found.records) + len(found.faults)
    if found.faults:
        print(f"ppe-npu: {complaint(found.faults, total)}", file=sys.stderr)
    folders = {str(Path(file).resolve().parent) for file in args.data}
    moved = folders != {str(output.resolve().parent)}
    root = f"; their paths start from {' or '.join(sorted(folders))} (--data-root)" if moved else ""
    if args.json:
        faults = [{"line": fault.where, "id": fault.id, "reason": fault.reason} for fault in found.faults]
        print_json(args, {"output": str(output), "converted": len(found.records), "faults": faults})
    elif found.records:
        print(f"{len(found.records)} of {total} records are in {output}{root}")
    return 1 if found.faults else 0
