"""`ppe-npu merge-lora` and `ppe-npu export`: turn what a run saved into a plain checkpoint, or one for vLLM."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ppe_npu.checkpoints.loading import quiet_transformers
from ppe_npu.cli.common import compressions, reading
from ppe_npu.errors import InputError
from ppe_npu.serving.checkpoint import marks
from ppe_npu.training.checkpoint import read_base
from ppe_npu.training.export import export, merge_lora


def run_merge_lora(args: argparse.Namespace) -> int:
    """Merge an adapter into the model it was trained on."""
    quiet_transformers()
    print(f"the merged model is in {merge_lora(args.adapter, args.output, args.model, args.dtype, **reading(args))}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write a checkpoint of a run as a plain checkpoint, or with --vllm as one whose config states its compression."""
    quiet_transformers()
    said = _for_vllm(args)
    folder = export(args.checkpoint, args.output, args.model, args.dtype, **reading(args), config=said)
    print(f"the plain checkpoint is in {folder}" if said is None else f"vllm serve {folder}")
    return 0


def _for_vllm(args: argparse.Namespace) -> dict[str, Any] | None:
    """The keys that are added to config.json, or replaced there; None without --vllm."""
    checkpoint, asked = Path(args.checkpoint), (args.compression, args.ratio, args.positions, args.k)
    if not args.vllm:
        if asked != (None,) * 4:
            raise InputError("--compression needs --vllm; a plain export keeps the run's own: add it, or leave it out")
        return None
    whole = checkpoint if not checkpoint.is_dir() or (checkpoint / "config.json").is_file() else None
    base = whole or args.model or read_base(checkpoint)["model"]  # the last two: the base of an adapter
    return marks(base, compressions(args, checkpoint)[0], **reading(args))
