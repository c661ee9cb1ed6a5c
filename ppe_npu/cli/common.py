"""What several commands read off the command line."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppe_npu.checkpoints.generation_defaults import Settings, of_checkpoint
from ppe_npu.checkpoints.loading import check_compression, load_processor
from ppe_npu.checkpoints.trust import NO_CODE
from ppe_npu.cli.output import say
from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.evaluation.decoding import check_ids, chosen, notice
from ppe_npu.models import another_k
from ppe_npu.training.adapted import Checkpoint
from ppe_npu.training.args import as_compression


def compressions(args: argparse.Namespace, model: Path) -> list[CompressionConfig]:
    """The compressions that were asked for; by default the one that the checkpoint was trained with, else ppe.

    --ratio and --k change those that have such a setting: dense has no ratio, only positions="ppe" has k.
    """
    asked = args.compression
    if asked is None:
        asked = _by_default(model)[0]
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


def _by_default(model: Path) -> tuple[str, str]:
    """The compression where none was named, and whose it is."""
    own = model / "compression.json"
    return (str(own), f"that of {own}") if os.path.isfile(own) else ("ppe", "the default")


def whose(args: argparse.Namespace, model: Path, configs: Sequence[CompressionConfig]) -> str | None:
    """Which compression is used where none was named, and why: to be said when nothing can be refused any more."""
    if args.compression is not None:
        return None
    return f"compression {configs[-1].label} is {_by_default(model)[1]}; --compression names another"


def reading(args: argparse.Namespace) -> dict[str, bool]:
    """What was asked of reading a checkpoint, as ppe_npu.checkpoints.loading's functions take it."""
    return {"allow_bin": True} if args.allow_bin else {}


def generation(asked: list[str] | None, found: Checkpoint) -> tuple[Settings, Settings]:
    """(what is used beside greedy search, what the checkpoint says); the first process prints what of it is not used.

    Raises:
        InputError: a setting that cannot be, a token that the model lacks, or a broken generation_config.json.
    """
    own = of_checkpoint(found.model)
    values = chosen(asked, own)
    if values:
        check_ids(values, _vocabulary(found.model))
    say(notice(own, values))
    return values, own


def _vocabulary(model: str | Path) -> float:
    """How many tokens a checkpoint's model has; infinitely many where its config does not say."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(str(model), **NO_CODE).get_text_config()
    return getattr(text, "vocab_size", None) or math.inf


def checkpoint(args: argparse.Namespace, model: str | Path, tiled: bool = False) -> Checkpoint:
    """The checkpoint that was named, which may be an adapter; --base says where its base is.

    Args:
        tiled: whether InternVL is taken, whose pictures are tiles.

    Raises:
        InputError: none is there, or it cannot be used.
    """
    return Checkpoint.of(model, args.base, args.allow_bin, tiled)


def fitted(found: Checkpoint, configs: list[CompressionConfig]) -> list[CompressionConfig]:
    """Compressions as the checkpoint's model takes them; InputError where one does not fit."""
    return said_k(configs, check_compression(found.model, *configs, allow_bin=found.allow_bin, tiled=found.tiled))


def said_k(asked: Sequence[CompressionConfig], fitted: list[CompressionConfig]) -> list[CompressionConfig]:
    """The fitted ones, after saying where a default k did not fit the model."""
    for line in dict.fromkeys(map(another_k, asked, fitted)):
        say(line)
    return fitted


def processor(found: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
    """The checkpoint's processor, with the bounds that were asked for."""
    return load_processor(found.processor, min_pixels, max_pixels, found.model)


def video_sampling(args: argparse.Namespace) -> VideoSampling:
    """The frames of videos that were asked for."""
    return VideoSampling(args.fps, args.nframes, args.min_pixels, args.max_pixels)
