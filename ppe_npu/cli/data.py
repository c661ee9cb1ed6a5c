"""`ppe-npu data`: checks training data and surveys its token counts."""

from __future__ import annotations

import argparse
from pathlib import Path

from ppe_npu.checkpoints.loading import check_compression, load_processor, quiet_transformers
from ppe_npu.cli.common import compressions, reading, said_k, video_sampling, whose
from ppe_npu.cli.output import check_apart, print_json, say
from ppe_npu.errors import InputError, shown
from ppe_npu.files import check_writable
from ppe_npu.training.survey import FILES as SURVEY
from ppe_npu.training.survey import MOST_WORKERS, check_survey_place, survey_files, write_survey


def run_data(args: argparse.Namespace) -> int:
    """Print the survey of training data; exit code 1 if records cannot be used."""
    quiet_transformers()
    compression = compressions(args, Path(args.model))[0]
    compression = said_k([compression], check_compression(args.model, compression, **reading(args)))[0]
    processor = load_processor(args.model, args.min_pixels, args.max_pixels)
    if not 0 <= args.num_workers <= MOST_WORKERS:
        raise InputError(f"--num-workers {shown(args.num_workers)}: give a number from 0 to {MOST_WORKERS}")
    if args.out is not None:
        check_survey_place(args.out)
        for name in SURVEY:
            check_writable(Path(args.out, name), file=True)
            check_apart("--out", Path(args.out, name), args.data)
    settings = {"data_root": args.data_root, "max_length": args.max_length, "workers": args.num_workers}
    outside = {"allow_outside": args.allow_outside}
    found = survey_files(args.data, processor, compression, video_sampling(args), **settings, **outside)
    if args.json:
        faults = [{"line": fault.where, "id": fault.id, "reason": fault.reason} for fault in found.faults]
        print_json(args, {**found.to_dict(), "unusable": faults})
    print(found.printable(), end="", flush=True)
    say(whose(args, Path(args.model), [compression]))
    if args.out is not None:
        print(f"\nwritten to {write_survey(found, args.out)}")
    return 1 if found.faults else 0
