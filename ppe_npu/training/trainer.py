"""train(config): a checkpoint and LLaVA-style data -> a fine-tuned checkpoint, compressed while it learns."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.compat import prepare_transformers
from ppe_npu.files import new_folder, write_json
from ppe_npu.inputs import InputError, PixelCache
from ppe_npu.loading import check_compression, load_model, load_processor
from ppe_npu.models import compress, restore
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.collator import Collator
from ppe_npu.training.data import ChatDataset, read_records

_CACHE_BYTES = 2 * 2**30
_SCHEDULERS = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "stable_decay": "warmup_stable_decay",
}


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        final: folder of the final checkpoint: model, processor, compression.json.
        steps: optimizer steps of the whole run.
        losses: [(step, mean loss since the last entry)].
        seconds: of this call's training, without loading.
        parameters, trainable: how many.
    """

    final: str
    steps: int
    losses: list[tuple[int, float]]
    seconds: float
    parameters: int
    trainable: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dataclasses.asdict(self)


def train(config: TrainConfig, announce: bool = True) -> TrainResult:
    """Fine-tune a model with compression inside its forward pass.

    Started by torchrun, each process does its share of every batch: the losses are those of one process on the same
    global batch, because they are averaged over all its tokens. The first process writes.

    output/final loads in plain transformers, and is a model to start from again; output/summary.json holds the result
    and all settings.

    Args:
        config: what to do.
        announce: print the table of parameters, steps and compression before step 1.

    Raises:
        InputError: a model, data or output that cannot be used; before anything long starts.
        TrainingError: the loss is NaN or infinite.
    """
    prepare_transformers()
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from ppe_npu.training.loop import CompressedTrainer, Progress, last_whole_checkpoint

    device, first, processes = devices.resolve(config.device), devices.process_rank() == 0, devices.process_count()
    if config.fused_adamw and device.type == "npu":
        raise InputError(
            "fused_adamw on an NPU: transformers' Trainer clears the model's gradients, which NpuFusedAdamW does not "
            "see, and it would go on with the first step's; leave it out"
        )
    check_compression(config.model, config.compression)
    checkpoint = _prepare_output(config) if first else None
    processor = load_processor(config.model, config.min_pixels, config.max_pixels)
    records = read_records(config.data, config.data_root)
    steps = total_steps(config, len(records), processes)
    if config.deepspeed is not None:
        start_deepspeed(config.deepspeed, device)
    arguments = _arguments(config, device, steps)  # starts the process group, and chooses this process' device
    devices.wait_for_all()  # until the first has looked at the output
    if not first and config.resume:
        checkpoint = last_whole_checkpoint(config.output)
    devices.seed_everything(config.seed)
    model = compress(load_model(config.model, arguments.device), config.compression).train()
    freeze(model, config.frozen)
    cache = PixelCache(_CACHE_BYTES) if config.cache_pixels else None
    collator = Collator(processor, model.compression.vision, config.video, cache)
    collator(records[:1])  # a chat template that does not fit is found here
    trainer = CompressedTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=ChatDataset(records),
        processing_class=processor,
        callbacks=[Progress("/".join(Path(config.output).parts[-2:]))],
    )
    for callback in (PrinterCallback, ProgressCallback):  # Progress shows the loss beside the bar
        trainer.remove_callback(callback)
    if announce and first:
        print(describe_run(config, model, len(records), steps, device, processes), flush=True)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    final = _save_final(config, trainer, processor)
    counts = [parameter.numel() for parameter in model.parameters()]
    result = TrainResult(
        final=str(final),
        steps=trainer.state.global_step,
        losses=[(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        seconds=seconds,
        parameters=sum(counts),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    )
    if first:
        write_json(Path(config.output) / "summary.json", {**result.to_dict(), "settings": config.to_dict()})
    return result


def start_deepspeed(file: str, device) -> None:
    """Start DeepSpeed's process group: before TrainingArguments, which would start torch's alone.

    Raises:
        InputError: DeepSpeed is missing, nobody launched several processes, or the device cannot do what the file asks.
    """
    try:
        stage = json.loads(Path(file).read_text()).get("zero_optimization", {}).get("stage", 0)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"deepspeed={file}: cannot be read as JSON ({error})") from None
    if "WORLD_SIZE" not in os.environ:
        raise InputError("deepspeed needs its processes started: torchrun --nproc-per-node N -m ppe_npu.cli train ...")
    if str(stage) == "3" and not devices.reduces_float64(device):
        raise InputError(
            f"deepspeed={file}: ZeRO-3 sums the gradients' norm in fp64, which HCCL refuses on this chip "
            f"({devices.describe(device)['name']}): use ZeRO-2"
        )
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(f"deepspeed={file}: DeepSpeed cannot be imported ({error}): install ppe-npu[train]") from None
    deepspeed.init_distributed(dist_backend=devices.process_group_backend(device))


def freeze(model: Any, beginnings: Sequence[str]) -> None:
    """Stop the parameters whose names begin so from learning.

    Raises:
        InputError: a beginning that no name has, or nothing left to learn.
    """
    names = [name for name, _ in model.named_parameters()]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            raise InputError(f"frozen={beginning!r} is the beginning of no parameter: they begin like {names[0]!r}")
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(beginnings)):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"frozen={list(beginnings)} leaves no parameter to learn: freeze less")


def total_steps(config: TrainConfig, records: int, processes: int = 1) -> int:
    """Optimizer steps of the whole run."""
    batches = math.ceil(records / (config.batch_size * processes))
    return config.max_steps or math.ceil(config.epochs * math.ceil(batches / config.gradient_accumulation))


def _prepare_output(config: TrainConfig) -> Path | None:
    """Make the output folder; the checkpoint to go on from, if any."""
    from ppe_npu.training.loop import checkpoints, last_whole_checkpoint

    output = Path(config.output)
    if output.is_file():
        raise InputError(f"output {output} is a file: name a folder")
    if config.overwrite:
        for folder in [*checkpoints(output), output / "final"]:
            shutil.rmtree(folder, ignore_errors=True)
    settings = output / "train.json"
    if not config.resume and (checkpoints(output) or (output / "final").exists()):
        raise InputError(
            f"output {output} holds an earlier run: pass resume to go on, overwrite to drop it, or another"
        )
    checkpoint = last_whole_checkpoint(output) if config.resume else None
    if checkpoint is not None and settings.is_file():
        before, now = json.loads(settings.read_text()), json.loads(json.dumps(config.identity()))
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise InputError(f"{output} was trained with another {', '.join(changed)}: resume with the same settings")
    write_json(settings, config.identity())
    return checkpoint


def _arguments(config: TrainConfig, device, steps: int):
    """transformers' TrainingArguments for this run."""
    from transformers import TrainingArguments

    decay = {"num_decay_steps": math.ceil(steps * config.decay_fraction), "decay_type": "linear"}
    arguments = TrainingArguments(
        output_dir=config.output,
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULERS[config.schedule],
        lr_scheduler_kwargs=decay if config.schedule == "stable_decay" else None,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.max_grad_norm,
        optim=devices.fused_adamw_name(device, fused=config.fused_adamw),
        bf16=config.dtype == "bf16",
        use_cpu=device.type == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=2,  # the last whole one stays until the next is whole
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # CompressedTrainer stops at the first one
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=device.type != "cpu",
        remove_unused_columns=False,  # records are objects until the collator reads them
        report_to=[],
        deepspeed=config.deepspeed,
        ddp_find_unused_parameters=False,  # a batch without pictures touches the vision tower, too
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process (DataParallel) would tear prompts apart
    return arguments


def describe_run(config: TrainConfig, model: Any, records: int, steps: int, device, processes: int = 1) -> str:
    """The table that is printed before step 1: who learns, how fast, on what."""
    groups: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        group = "merger" if ".merger." in name else "vision" if "visual." in name else "language"
        counts = groups.setdefault(group, [0, 0])
        counts[0] += parameter.numel()
        counts[1] += parameter.numel() if parameter.requires_grad else 0
    lines = [f"{'parameters':<12}{'all':>16}{'trainable':>16}{'learning rate':>16}"]
    lines += [f"{name:<12}{a:>16,}{t:>16,}{config.learning_rate:>16.3g}" for name, (a, t) in groups.items()]
    compression = config.compression
    what = "dense" if compression.is_dense else (
        f"{compression.method}, ratio {compression.ratio}, positions {compression.positions}, k {compression.k}"
    )  # fmt: skip
    effective = config.batch_size * config.gradient_accumulation * processes
    shares = f"{config.batch_size} x {config.gradient_accumulation}" + (
        f" x {processes} processes" if processes > 1 else ""
    )
    lines += [
        f"{records:,} records, {steps:,} steps of {effective} ({shares}), "
        f"schedule {config.schedule} after {config.warmup_steps} warm-up steps",
        f"compression {what}; {config.dtype} on {devices.describe(device)['name']}; seed {config.seed}",
    ]
    return "\n".join(lines)


def _save_final(config: TrainConfig, trainer: Any, processor: Any) -> Path:
    """output/final: the model as plain transformers reads it, its processor, and compression.json."""
    model, final = trainer.model, Path(config.output) / "final"
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # of all processes, where each holds a part
    compression = model.compression.config
    restore(model)
    if trainer.is_world_process_zero():
        with new_folder(final) as folder:
            model.save_pretrained(folder, state_dict=weights)
            processor.save_pretrained(folder)
            write_json(folder / "compression.json", compression.to_dict())
    trainer.accelerator.wait_for_everyone()
    return final
