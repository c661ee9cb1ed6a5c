"""Turns command-line arguments that several commands share into configs, checkpoints and processors."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppe_npu.checkpoints.generation_defaults import GenerationSettings, of_checkpoint
from ppe_npu.checkpoints.loading import check_compression, load_processor
from ppe_npu.checkpoints.trust import NO_CODE
from ppe_npu.cli.output import say
from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.evaluation.decoding import check_ids, generation_settings, notice
from ppe_npu.models import another_k
from ppe_npu.training.adapted import Checkpoint
from ppe_npu.training.args import as_compression


def compressions(args: argparse.Namespace, model: Path) -> list[CompressionConfig]:
    """The compressions that were asked for; by default the one that the checkpoint was trained with, else ppe.

    If there are several, --ratio, --positions and --k apply only to those that have such a setting: dense has none, and
    only positions="ppe" has k.
    """
    asked = args.compression
    if asked is None:
        asked = _by_default(model)[0]
    names = [asked] if isinstance(asked, str) else asked
    configs = []
    for name in names:
        # Without k first: ppe's default k does not fit every model, and a preset is checked against the model later.
        config = as_compression(name)
        positions = None if config.is_dense and len(names) > 1 else getattr(args, "positions", None)
        ratio = None if config.is_dense and len(names) > 1 else args.ratio
        k = None if (positions or config.positions) != "ppe" and len(names) > 1 else args.k
        configs.append(as_compression(config, positions=positions, ratio=ratio, k=k))
    return configs


def _by_default(model: Path) -> tuple[str, str]:
    """The compression that is used if none was named, and where it comes from, in words."""
    own = model / "compression.json"
    return (str(own), f"the one in {own}") if os.path.isfile(own) else ("ppe", "the default")


def whose(args: argparse.Namespace, model: Path, configs: Sequence[CompressionConfig]) -> str | None:
    """A line on which compression is used and why, if none was named; print it once all input has been checked."""
    if args.compression is not None:
        return None
    return f"compression {configs[-1].label} is {_by_default(model)[1]}; choose another with --compression"


def reading(args: argparse.Namespace) -> dict[str, bool]:
    """The options on reading a checkpoint, as keyword arguments of the functions in ppe_npu.checkpoints.loading."""
    return {"allow_bin": True} if args.allow_bin else {}


def generation(asked: list[str] | None, found: Checkpoint) -> tuple[GenerationSettings, GenerationSettings]:
    """(settings that change greedy search, the checkpoint's own settings); prints which of the latter are not used.

    Raises:
        InputError: an invalid setting, a token that the model lacks, or a broken generation_config.json.
    """
    own = of_checkpoint(found.model)
    values = generation_settings(asked, own)
    if values:
        check_ids(values, _vocabulary(found.model))
    say(notice(own, values))
    return values, own


def _vocabulary(model: str | Path) -> float:
    """The vocabulary size of a checkpoint's model; infinity if its config has none."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(str(model), **NO_CODE).get_text_config()
    return getattr(text, "vocab_size", None) or math.inf


def checkpoint(args: argparse.Namespace, model: str | Path, tiled: bool = False) -> Checkpoint:
    """The named checkpoint, which may be an adapter; --base says where the adapter's base is.

    Args:
        tiled: whether InternVL, whose pictures are tiles, is accepted.

    Raises:
        InputError: there is no checkpoint, or it cannot be used.
    """
    return Checkpoint.of(model, args.base, args.allow_bin, tiled)


def fitted(found: Checkpoint, configs: list[CompressionConfig]) -> list[CompressionConfig]:
    """The compressions fitted to the checkpoint's model; InputError if one does not fit."""
    return said_k(configs, check_compression(found.model, *configs, allow_bin=found.allow_bin, tiled=found.tiled))


def said_k(asked: Sequence[CompressionConfig], fitted: list[CompressionConfig]) -> list[CompressionConfig]:
    """The fitted compressions; prints a line for each default k that had to change to fit the model."""
    for line in dict.fromkeys(map(another_k, asked, fitted)):
        say(line)
    return fitted


def processor(found: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
    """The checkpoint's processor with these bounds on the pixels of an image or a frame."""
    return load_processor(found.processor, min_pixels, max_pixels, found.model)


def video_sampling(args: argparse.Namespace) -> VideoSampling:
    """Which frames of videos are taken, and how large, as asked for on the command line."""
    return VideoSampling(args.fps, args.nframes, args.min_pixels, args.max_pixels)
