"""`ppe-npu train` and `parity`: command-line arguments -> train() and the comparisons; what other commands share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.loading import quiet_transformers
from ppe_npu.media import VideoSampling

EMBEDDED = Path("runs/train")  # data, base model and final model of `ppe-npu train` without arguments
# The embedded run: enough to see shapes learnt, in about a minute on two cores. The demo's recipe is a longer one.
_TRAIN_IMAGES, _TEST_IMAGES, _QUESTIONS = 1024, 64, 12
_STEPS, _BATCH = 200, 32


def run_train(args: argparse.Namespace) -> int:
    """Train as asked; without --model and --data: the embedded model on generated scenes."""
    devices.resolve(args.device)  # a device that is not there is said first
    if (args.model is None) != (args.data is None):
        missing = "--data" if args.data is None else "--model"
        raise InputError(f"{missing} is missing: give --model and --data, or neither for the embedded run")
    from ppe_npu.training.args import TrainConfig
    from ppe_npu.training.trainer import train

    quiet_transformers()
    result = train(TrainConfig(**(_embedded(args) if args.model is None else _asked(args))))
    if devices.process_rank() == 0:
        print(f"{result.steps} steps in {result.seconds:.0f} s; the model is in {result.final}")
    return 0


_OPTIONS = (
    *("data_root", "device", "dtype", "epochs", "max_steps", "batch_size", "seed", "gradient_accumulation"),
    *("learning_rate", "warmup_steps", "schedule", "weight_decay", "max_grad_norm", "save_steps", "logging_steps"),
    *("fused_adamw", "deepspeed"),
    *("num_workers", "gradient_checkpointing", "resume", "overwrite", "min_pixels", "max_pixels"),
)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """TrainConfig's values that were named on the command line; the rest keeps its defaults."""
    named = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    return {**named, "output": args.output, "video": video_sampling(args)}


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """TrainConfig's values for a model and data of the user's."""
    return {
        **_given(args),
        "model": args.model,
        "data": args.data,
        "compression": compressions(args, Path(args.model))[0],
    }


def _embedded(args: argparse.Namespace) -> dict[str, Any]:
    """The embedded run's values: data and an untrained model are written if they are not there."""
    from filelock import FileLock

    from ppe_npu.demo import tiny
    from ppe_npu.files import new_folder

    root, seed = Path(args.output), args.seed or 0
    root.mkdir(parents=True, exist_ok=True)
    base = root / f"base-seed{seed}"
    before = root / "train.json"
    if before.is_file() and not Path(json.loads(before.read_text())["model"]).name.startswith("base-seed"):
        raise InputError(f"output {root} holds a run of another model: name another --output for the embedded run")
    with FileLock(root / ".embedded.lock"):  # of several processes the first writes
        write_embedded_data(root / "data")
        if not (base / "config.json").is_file():
            with new_folder(base) as folder:
                tiny.build_model(seed).save_pretrained(folder)
                tiny.build_processor().save_pretrained(folder)
    if args.compression is None and args.ratio is None and args.k is None:
        compression = CompressionConfig.preset("ppe", k=4)  # 8 does not divide the tiny model's sections
    else:
        compression = compressions(args, base)[0]
    recipe = {
        "batch_size": _BATCH,
        "max_steps": None if args.epochs else _STEPS,
        "learning_rate": 2e-3,
        "betas": (0.9, 0.98),
        "frozen": ("model.visual",),  # as the demo's recipe, which says why
        "warmup_steps": 20,
        "schedule": "stable_decay",
        "logging_steps": 25,
        "cache_pixels": True,
        "overwrite": not args.resume,
    }
    own = {"model": str(base), "data": str(root / "data" / "train.jsonl"), "compression": compression}
    return {**recipe, **_given(args), **own}


def write_embedded_data(folder: Path) -> None:
    """Draw the embedded benchmark's splits where they are not there."""
    from ppe_npu.demo import scenes

    for name, images, seed, simple in (("train", _TRAIN_IMAGES, 1, 0.5), ("test", _TEST_IMAGES, 2, 0.0)):
        if not (folder / f"{name}.jsonl").is_file():
            scenes.write_split(folder, name, images, seed, _QUESTIONS, simple=simple)


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
