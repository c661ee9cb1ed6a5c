"""Validation records, which a run does not train on: which are held back, and their loss during the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ppe_npu.backends.common import IGNORED
from ppe_npu.errors import InputError, counted
from ppe_npu.training.collator import NOTES
from ppe_npu.training.data import Record

VALIDATION = "eval_loss"  # what the Trainer calls the loss of the validation records in its logs


def held_back(records: int, share: float, seed: int) -> np.ndarray:
    """bool [records]: which records are held back; the same in every process and every run with the same seed.

    Raises:
        InputError: no record would be left to train on.
    """
    number = math.ceil(records * share)
    if number >= records:
        raise InputError(
            f"validation_share={share:g} of {counted(records, 'record')} leaves none to train on: give more records"
        )
    chosen = np.zeros(records, dtype=bool)
    chosen[np.random.default_rng([seed, records]).permutation(records)[:number]] = True
    return chosen


@torch.no_grad()
def mean_loss(trainer: Any, records: Sequence[Record]) -> float:
    """The mean loss over all labelled tokens of records, as training counts them; the processes share the work.

    All processes run the same number of forward passes, as ZeRO-3 gathers weights in each. Nothing random is drawn.

    Args:
        trainer: a CompressedTrainer. Its model returns to the mode (training or not) that it was in before.
    """
    arguments, model = trainer.args, trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    size, rank, world = arguments.eval_batch_size, arguments.process_index, arguments.world_size
    batches = [records[start : start + size] for start in range(0, len(records), size)]
    total, tokens, training = 0.0, 0, model.training
    model.eval()
    try:
        for number in range(rank, math.ceil(len(batches) / world) * world, world):
            inputs = trainer.data_collator(batches[min(number, len(batches) - 1)])
            inputs = trainer._prepare_inputs({key: value for key, value in inputs.items() if key not in NOTES})
            count = int((inputs["labels"][..., 1:] != IGNORED).sum())
            with trainer.compute_loss_context_manager():
                loss = float(trainer.compute_loss(model, inputs))
            if number < len(batches) and count:
                total, tokens = total + loss * count, tokens + count
    finally:
        model.train(training)
    if world > 1:
        summed = trainer.accelerator.reduce(torch.tensor([total, tokens], device=arguments.device), "sum")
        total, tokens = summed.tolist()
    return total / tokens if tokens else float("nan")
