"""How a run starts: its number of steps, transformers' arguments, and DeepSpeed's process group."""

from __future__ import annotations

import math
import os

import torch

from ppe_npu.backends import device as devices
from ppe_npu.errors import InputError, first_line
from ppe_npu.training.args import TrainConfig
from ppe_npu.utils.launched import has_local_rank
from ppe_npu.utils.optional import optional
from ppe_npu.utils.reading import UnreadableError, read_json

_SCHEDULERS = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine_with_min_lr",
    "stable_decay": "warmup_stable_decay",
}


def check_deepspeed(file: str, device, copies: bool = False) -> None:
    """Raise InputError if a run with this DeepSpeed config cannot start.

    Args:
        copies: whether the run also keeps a frozen copy of the model.

    Raises:
        InputError: DeepSpeed is missing, no launcher started the processes, the file is no config, or the device or
            the copy rules out what it asks for.
    """
    try:
        asked = read_json(file)
    except UnreadableError as error:
        raise InputError(f"deepspeed={file} cannot be read as JSON ({error.why}): give another file") from None
    zero = asked.get("zero_optimization", {}) if isinstance(asked, dict) else None
    if not isinstance(zero, dict):
        raise InputError(f"deepspeed={file} is not a DeepSpeed config: give a JSON object of its keys")
    stage = zero.get("stage", 0)
    if "WORLD_SIZE" not in os.environ:
        raise InputError("deepspeed needs a launcher: torchrun --nproc-per-node N -m ppe_npu.cli train ...")
    if str(stage) == "3" and not devices.reduces_float64(device):
        raise InputError(
            f"deepspeed={file}: ZeRO-3 sums the gradients' norm in fp64, which HCCL refuses on this chip "
            f"({devices.describe(device)['name']}): use ZeRO-2"
        )
    if str(stage) == "3" and copies:
        raise InputError(
            f"distill_teacher='start' with deepspeed={file}: under ZeRO-3 no process has a whole model to copy; use "
            "ZeRO-2, or distill_teacher='present'"
        )
    _deepspeed(file)


def start_deepspeed(file: str, device) -> None:
    """Start DeepSpeed's process group. Call it before TrainingArguments, which would start torch's group only."""
    _deepspeed(file).init_distributed(dist_backend=devices.process_group_backend(device))


def _deepspeed(file: str):
    return optional("deepspeed", f"deepspeed={file}", "ppe-npu[train]")


def total_steps(config: TrainConfig, records: int, processes: int = 1) -> int:
    """Optimizer steps of the whole run."""
    batches = math.ceil(records / (config.batch_size * processes))
    return config.max_steps or math.ceil(config.epochs * math.ceil(batches / config.accumulation(processes)))


def start_group(config: TrainConfig, device, steps: int, processes: int):
    """Start the process group, and return transformers' TrainingArguments, which choose this process's device.

    Raises:
        InputError: the environment's variables for several processes are refused, or the processes cannot connect.
    """
    try:
        if config.deepspeed is not None:
            start_deepspeed(config.deepspeed, device)
        return _arguments(config, device, steps, processes)
    except InputError:
        raise
    except (ValueError, torch.distributed.DistError) as error:
        if processes == 1 and not has_local_rank():  # accelerate starts no group then, so it is another fault
            raise
        raise InputError(
            f"the group of processes (of {processes}) cannot be started ({first_line(error)}): start it with torchrun "
            "and a free --master-port; or unset LOCAL_RANK, RANK and WORLD_SIZE for a single process"
        ) from error


def _arguments(config: TrainConfig, device, steps: int, processes: int = 1):
    """transformers' TrainingArguments for this run."""
    from transformers import TrainingArguments

    schedules = {
        "stable_decay": {"num_decay_steps": math.ceil(steps * config.decay_fraction), "decay_type": "linear"},
        "cosine": {"min_lr_rate": config.least_rate},
    }
    arguments = TrainingArguments(
        output_dir=config.output,
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation(processes),
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULERS[config.schedule],
        lr_scheduler_kwargs=schedules.get(config.schedule),
        warmup_steps=config.warmup_steps if config.warmup_steps >= 1 else math.ceil(config.warmup_steps * steps),
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.max_grad_norm,
        optim=devices.fused_adamw_name(device, fused=config.fused_adamw),
        bf16=config.dtype == "bf16",
        use_cpu=devices.on_cpu(device),
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=config.save_total_limit,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # CompressedTrainer stops at the first such loss
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=not devices.on_cpu(device),
        remove_unused_columns=False,  # records are objects until the collator reads them
        report_to=[],
        eval_strategy="steps" if config.eval_steps else "no",
        eval_steps=config.eval_steps or None,
        per_device_eval_batch_size=config.batch_size,
        deepspeed=config.deepspeed,
        ddp_find_unused_parameters=False,  # a batch without pictures uses the vision tower, too
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process (DataParallel) would split up prompts
    return arguments
