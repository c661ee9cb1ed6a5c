"""`ppe-npu parity`: compares this device's results with fp64, or with results that another machine recorded."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ppe_npu.backends import device as devices
from ppe_npu.backends import parity
from ppe_npu.backends.common import DTYPES
from ppe_npu.checkpoints.loading import quiet_transformers
from ppe_npu.cli.output import print_json
from ppe_npu.errors import InputError
from ppe_npu.parity import bundle, end_to_end


def run_parity(args: argparse.Namespace) -> int:
    """Compare this device with fp64, record its results, or compare it with a record; exit code 1 if they disagree."""
    given = {"run": (args.bundle, args.out), "record": (args.bundle,), "check": (args.out, args.dtypes)}[args.action]
    if any(given) or (args.action == "record" and (not args.out or args.dtypes)):
        raise InputError("parity: give no arguments, `record --out FOLDER`, or `check FOLDER`")
    if args.action == "check" and not args.bundle:
        raise InputError("parity check: name the bundle's folder")
    dtypes = tuple(name.strip() for name in (args.dtypes or ",".join(DTYPES)).split(",") if name.strip())
    if not dtypes or set(dtypes) - set(DTYPES):
        raise InputError(f"--dtypes {args.dtypes}: use some of {', '.join(DTYPES)}, comma-separated")
    device = devices.resolve(args.device)
    if not any(devices.supports(device, DTYPES[name]) for name in dtypes):
        raise InputError(f"--dtypes {','.join(dtypes)}: {device.type} supports none of them: name others")
    quiet_transformers()
    if args.action == "record":
        rows = bundle.record(device, args.out)
    elif args.action == "check":
        rows = bundle.check(args.bundle, device)
    else:
        rows = parity.run_parity(device, dtypes) + end_to_end.run_end_to_end(device, dtypes)
    if args.json:
        print_json(args, [asdict(row) for row in rows])
    print(parity.format_table(rows))
    return 0 if all(row.ok for row in rows) else 1
