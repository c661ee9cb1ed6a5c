"""`ppe-npu data`, `merge-lora`, `export` and `parity`, and what other commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from ppe_npu.backends import device as devices
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.loading import quiet_transformers
from ppe_npu.media import VideoSampling


def run_data(args: argparse.Namespace) -> int:
    """Print the survey of training data; exit code 1 if records cannot be used."""
    from ppe_npu.loading import check_compression, load_processor
    from ppe_npu.training.survey import survey_files, write_survey

    quiet_transformers()
    compression = compressions(args, Path(args.model))[0]
    check_compression(args.model, compression)
    processor = load_processor(args.model, args.min_pixels, args.max_pixels)
    if args.num_workers < 0:
        raise InputError(f"--num-workers {args.num_workers}: give 0 or more")
    settings = {"data_root": args.data_root, "max_length": args.max_length, "workers": args.num_workers}
    found = survey_files(args.data, processor, compression, video_sampling(args), **settings)
    print(found.markdown(), end="")
    if args.out is not None:
        print(f"\nwritten to {write_survey(found, args.out)}")
    return 1 if found.faults else 0


def run_merge_lora(args: argparse.Namespace) -> int:
    """Merge an adapter into the model it was trained on."""
    quiet_transformers()
    from ppe_npu.training.export import merge_lora

    print(f"the merged model is in {merge_lora(args.adapter, args.output, args.model, args.dtype)}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write a checkpoint of a run as a plain one."""
    quiet_transformers()
    from ppe_npu.training.export import export

    print(f"the plain checkpoint is in {export(args.checkpoint, args.output, args.model, args.dtype)}")
    return 0


def compressions(args: argparse.Namespace, model: Path) -> list[CompressionConfig]:
    """The compressions that were asked for; by default the one that the checkpoint was trained with, else ppe.

    --ratio and --k change those that have such a setting: dense has no ratio, only positions="ppe" has k.
    """
    from ppe_npu.training.args import as_compression

    asked = args.compression
    if asked is None:
        own = model / "compression.json"
        asked = str(own) if own.is_file() else "ppe"
    names = [asked] if isinstance(asked, str) else asked
    configs = []
    for name in names:
        # k first: ppe's own does not fit every model, and a preset is checked against the model, not here.
        config = as_compression(name)
        ratio = None if config.is_dense and len(names) > 1 else args.ratio
        k = None if config.positions != "ppe" and len(names) > 1 else args.k
        configs.append(as_compression(config, ratio=ratio, k=k))
    return configs


def run_parity(args: argparse.Namespace) -> int:
    """Compare this device with fp64, or with what another machine recorded; the exit code says whether they agree."""
    given = {"run": (args.bundle, args.out), "record": (args.bundle,), "check": (args.out, args.dtypes)}[args.action]
    if any(given) or (args.action == "record" and (not args.out or args.dtypes)):
        raise InputError("parity: give nothing, `record --out FOLDER`, or `check FOLDER`")
    if args.action == "check" and not args.bundle:
        raise InputError("parity check: name the bundle's folder")
    dtypes = tuple(name.strip() for name in (args.dtypes or "fp32,bf16,fp16").split(",") if name.strip())
    if not dtypes or set(dtypes) - {"fp32", "bf16", "fp16"}:
        raise InputError(f"--dtypes {args.dtypes}: use fp32, bf16 and fp16, comma-separated")
    device = devices.resolve(args.device)
    quiet_transformers()
    from ppe_npu.backends import parity
    from ppe_npu.parity import bundle, end_to_end

    if args.action == "record":
        rows = bundle.record(device, args.out)
    elif args.action == "check":
        rows = bundle.check(args.bundle, device)
    else:
        rows = parity.run_parity(device, dtypes) + end_to_end.run_end_to_end(device, dtypes)
    print(parity.format_table(rows))
    return 0 if all(row.ok for row in rows) else 1


def video_sampling(args: argparse.Namespace) -> VideoSampling:
    """The frames of videos that were asked for."""
    return VideoSampling(args.fps, args.nframes, args.min_pixels, args.max_pixels)
