"""`ppe-npu merge-lora` and `ppe-npu export`: what a run saved -> a plain checkpoint."""

from __future__ import annotations

import argparse

from ppe_npu.checkpoints.loading import quiet_transformers
from ppe_npu.cli.common import reading
from ppe_npu.training.export import export, merge_lora


def run_merge_lora(args: argparse.Namespace) -> int:
    """Merge an adapter into the model it was trained on."""
    quiet_transformers()
    print(f"the merged model is in {merge_lora(args.adapter, args.output, args.model, args.dtype, **reading(args))}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write a checkpoint of a run as a plain one."""
    quiet_transformers()
    print(f"the plain checkpoint is in {export(args.checkpoint, args.output, args.model, args.dtype, **reading(args))}")
    return 0
