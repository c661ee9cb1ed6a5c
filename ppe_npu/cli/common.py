"""What several commands read off the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.generation_defaults import Settings, of_checkpoint
from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.evaluation.decoding import chosen, notice
from ppe_npu.training.args import as_compression


def compressions(args: argparse.Namespace, model: Path) -> list[CompressionConfig]:
    """The compressions that were asked for; by default the one that the checkpoint was trained with, else ppe.

    --ratio and --k change those that have such a setting: dense has no ratio, only positions="ppe" has k.
    """
    asked = args.compression
    if asked is None:
        own = model / "compression.json"
        asked = str(own) if own.is_file() else "ppe"
    names = [asked] if isinstance(asked, str) else asked
    configs = []
    for name in names:
        # k first: ppe's own does not fit every model, and a preset is checked against the model, not here.
        config = as_compression(name)
        positions = None if config.is_dense and len(names) > 1 else getattr(args, "positions", None)
        ratio = None if config.is_dense and len(names) > 1 else args.ratio
        k = None if (positions or config.positions) != "ppe" and len(names) > 1 else args.k
        configs.append(as_compression(config, positions=positions, ratio=ratio, k=k))
    return configs


def reading(args: argparse.Namespace) -> dict[str, bool]:
    """What was asked of reading a checkpoint, as ppe_npu.checkpoints.loading's functions take it."""
    return {"allow_bin": True} if args.allow_bin else {}


def generation(args: argparse.Namespace) -> tuple[Settings, Settings]:
    """(what is used beside greedy search, what the checkpoint says); the first process prints what of it is not used.

    Raises:
        InputError: a setting that cannot be, or a broken generation_config.json.
    """
    own = of_checkpoint(args.model)
    values = chosen(args.generation, own)
    line = notice(own, values)
    if line and devices.process_rank() == 0:
        print(f"ppe-npu: {line}", file=sys.stderr)
    return values, own


def video_sampling(args: argparse.Namespace) -> VideoSampling:
    """The frames of videos that were asked for."""
    return VideoSampling(args.fps, args.nframes, args.min_pixels, args.max_pixels)
