"""train(config): a checkpoint and LLaVA-style data -> a fine-tuned checkpoint, compressed while it learns."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.loading import check_compression, load_model, load_processor
from ppe_npu.data.inputs import PixelCache
from ppe_npu.errors import InputError
from ppe_npu.files import new_folder, write_json
from ppe_npu.models import compress, restore
from ppe_npu.models.loss import Distillation
from ppe_npu.training.adapters import add_adapter, check_adapter, quantization, save_adapter
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.checkpoint import BASE, COMPRESSION, base_record
from ppe_npu.training.collator import Collator
from ppe_npu.training.data import ChatDataset, Record
from ppe_npu.training.parts import freeze, parameter_count
from ppe_npu.training.survey import Survey, prepare_records
from ppe_npu.utils.optional import optional
from ppe_npu.utils.reading import UnreadableError, read_json

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
        final: folder of the final checkpoint: model or adapter, processor, compression.json, base.json.
        steps: optimizer steps of the whole run.
        losses: [(step, mean loss since the last entry)].
        seconds: of this call's training, without loading.
        parameters, trainable: how many.
        tokens_per_second: of the prompts as they were given, in this call.
        retention: share of the visual tokens that this call kept, averaged over decoder layers; None without any.
        skipped: records that broke while they were read, in all processes.
        peak_memory: bytes that the first process' device held at most; None on a CPU.
    """

    final: str
    steps: int
    losses: list[tuple[int, float]]
    seconds: float
    parameters: int
    trainable: int
    tokens_per_second: float
    retention: float | None
    skipped: int
    peak_memory: int | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dataclasses.asdict(self)


def train(config: TrainConfig, announce: bool = True) -> TrainResult:
    """Fine-tune a model with compression inside its forward pass.

    Started by torchrun, each process does its share of every batch: the losses are those of one process on the same
    global batch, because they are averaged over all its tokens. The first process writes.

    output/final loads in plain transformers (an adapter in plain peft), and is a model to start from again; beside it
    lie train.json (all settings), data.md (the survey of the data), summary.json, summary.md and loss.png.

    Args:
        config: what to do.
        announce: print the table of parameters, data, steps and operators before step 1.

    Raises:
        InputError: a model, data or output that cannot be used; before anything long starts.
        TrainingError: the loss is NaN or infinite, or a parameter that should learn is given no gradient.
    """
    from ppe_npu.training.output import check_output, sole_run

    device, first, processes = devices.resolve(config.device), devices.process_rank() == 0, devices.process_count()
    _check(config, device, processes)
    with sole_run(Path(config.output)) if first else contextlib.nullcontext():
        if first:
            check_output(config)
        return _train(config, device, first, processes, announce)


def _train(config: TrainConfig, device, first: bool, processes: int, announce: bool) -> TrainResult:
    """The run, in a folder that no other run is in."""
    from ppe_npu.training import output

    checkpoint = output.checkpoint_to_resume(config) if first else None
    if first:
        output.check_settings(config, checkpoint)
        output.check_checkpoint(config, checkpoint)
    processor = load_processor(config.model, config.min_pixels, config.max_pixels)
    records, survey = _records(config, processor, config.output if first and checkpoint is None else None)
    identity, marks = output.run_identity(config, records, processes) if first else ({}, [])
    if first:
        output.check_identity(config, checkpoint, identity, records, marks)
    steps = total_steps(config, len(records), processes)
    if config.deepspeed is not None:
        start_deepspeed(config.deepspeed, device)
    arguments = _arguments(config, device, steps, processes)  # starts the process group, chooses this process' device
    devices.wait_for_all()  # until the first has looked at the output
    if not first:
        checkpoint = output.checkpoint_to_resume(config)
    devices.seed_everything(config.seed)
    model, base = _model(config, arguments.device)
    output.check_base(checkpoint, base)
    newer = output.begin_output(config, checkpoint, steps, identity, marks) if first else []
    devices.wait_for_all()
    known = {"base": base, "identity": identity, "newer": newer}
    trainer = _trainer(config, arguments, model, processor, records, survey, processes, known)
    if announce and first:
        from ppe_npu.training.announce import describe_run

        print(describe_run(config, model, survey, steps, device, processes), flush=True)
    devices.reset_peak_memory(arguments.device)
    started = time.perf_counter()
    # fp32 is asked for to have all of it: CUDA and Ascend would round a convolution's inputs.
    with devices.exact_matmul() if config.dtype == "fp32" else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    result = _result(trainer, _save_final(config, trainer, processor, base), time.perf_counter() - started)
    trainer.drop_newer()
    if first:
        from ppe_npu.training.summary import write_summary

        about = {"settings": config.to_dict(), "data": survey.to_dict(), "versions": _versions(arguments.device)}
        write_summary(config.output, {**result.to_dict(), **about})
    return result


def _check(config: TrainConfig, device, processes: int) -> None:
    """All that can be wrong before a file of the data is read."""
    if config.fused_adamw and devices.keeps_cleared_gradients(device):
        raise InputError(
            "fused_adamw on an NPU: transformers' Trainer clears the model's gradients, which NpuFusedAdamW does not "
            "see, and it would go on with the first step's; leave it out"
        )
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard is asked for and not installed: install ppe-npu[train], or leave it out")
    if config.adapter is not None:
        check_adapter(config.adapter, device)
        if config.adapter.kind == "qlora" and config.dtype != "bf16":
            raise InputError(f"dtype={config.dtype!r} with adapter kind='qlora': its 4 bits are computed in bf16")
    config.accumulation(processes)
    check_compression(config.model, config.compression, allow_bin=config.allow_bin)


def _records(config: TrainConfig, processor: Any, folder: str | None) -> tuple[list[Record], Survey]:
    """The records to train on; what was found is listed in a folder, if one is given."""
    records, survey = prepare_records(
        config.data,
        processor,
        config.compression,
        config.video,
        config.data_root,
        config.max_length,
        config.invalid,
        folder=folder,
        workers=config.num_workers,
        allow_outside=config.allow_outside,
    )
    apart = next((record for record in records if record.independent), None)
    if config.packing and apart is not None:
        raise InputError(f"packing: {apart.where} holds independent questions, which are packed already: leave it out")
    return records, survey


def _model(config: TrainConfig, device) -> tuple[Any, dict[str, str]]:
    """The model as it learns, on its device, and the record of what it was."""
    # Under an adapter the weights stay as they are, and half as wide; its own are fp32.
    dtype = "bf16" if config.adapter is not None and config.dtype == "bf16" else "fp32"
    packed = quantization(config.adapter, device)
    model = load_model(config.model, device, dtype, quantization_config=packed, allow_bin=config.allow_bin)
    base = base_record(model, config.model, config.allow_bin)
    model = compress(model, config.compression)
    if config.adapter is not None:
        model = add_adapter(model, config.adapter)
    freeze(model, config.all_frozen)
    return model.train(), base


def _trainer(config, arguments, model, processor, records, survey, processes: int, known: dict[str, Any]):
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from ppe_npu.training.callbacks import GradientCheck, Progress
    from ppe_npu.training.loop import CompressedTrainer

    cache = PixelCache(_CACHE_BYTES) if config.cache_pixels else None
    distill = config.distill_weight and Distillation(config.distill_weight, config.distill_temperature)
    trainer = CompressedTrainer(
        model=model,
        args=arguments,
        data_collator=Collator(
            processor, model.compression.vision, config.video, cache, skip_broken=config.invalid == "skip"
        ),
        train_dataset=ChatDataset(records),
        processing_class=processor,
        callbacks=[Progress("/".join(Path(config.output).parts[-2:])), GradientCheck(), *_tensorboard(config)],
        **known,
        learning_rates=config.learning_rates,
        lengths=survey.after.tolist() if config.group_by_length else None,
        per_step=config.batch_size * config.accumulation(processes) * processes,
        packing=config.packing,
        distillation=distill or None,
    )
    for callback in (PrinterCallback, ProgressCallback):  # Progress shows the loss beside the bar
        trainer.remove_callback(callback)
    return trainer


def _tensorboard(config: TrainConfig) -> list[Any]:
    if not config.tensorboard or devices.process_rank() != 0:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(Path(config.output) / "tensorboard")))]


def _result(trainer: Any, final: Path, seconds: float) -> TrainResult:
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    counts = [(parameter_count(parameter), parameter.requires_grad) for parameter in trainer.model.parameters()]
    return TrainResult(
        final=str(final),
        steps=trainer.state.global_step,
        losses=[(entry["step"], entry["loss"]) for entry in logged],
        seconds=seconds,
        parameters=sum(count for count, _ in counts),
        trainable=sum(count for count, learns in counts if learns),
        tokens_per_second=round(trainer.args.world_size * trainer.meter.tokens / max(seconds, 1e-9), 1),
        retention=trainer.meter.retention,
        skipped=sum(file.read_text().count("\n") for file in final.parent.glob("skipped-*.jsonl")),
        peak_memory=devices.peak_memory(trainer.args.device),
    )


def _versions(device) -> dict[str, str]:
    """The versions of what decides the numbers."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "accelerate")
    return {name: version(name) for name in packages} | {"device": devices.describe(device)["name"]}


def start_deepspeed(file: str, device) -> None:
    """Start DeepSpeed's process group: before TrainingArguments, which would start torch's alone.

    Raises:
        InputError: DeepSpeed is missing, nobody launched several processes, or the device cannot do what the file asks.
    """
    try:
        asked = read_json(file)
    except UnreadableError as error:
        raise InputError(f"deepspeed={file}: cannot be read as JSON ({error.why})") from None
    zero = asked.get("zero_optimization", {}) if isinstance(asked, dict) else None
    if not isinstance(zero, dict):
        raise InputError(f"deepspeed={file}: is no config of DeepSpeed's: give a JSON object of its keys")
    stage = zero.get("stage", 0)
    if "WORLD_SIZE" not in os.environ:
        raise InputError("deepspeed needs its processes started: torchrun --nproc-per-node N -m ppe_npu.cli train ...")
    if str(stage) == "3" and not devices.reduces_float64(device):
        raise InputError(
            f"deepspeed={file}: ZeRO-3 sums the gradients' norm in fp64, which HCCL refuses on this chip "
            f"({devices.describe(device)['name']}): use ZeRO-2"
        )
    deepspeed = optional("deepspeed", f"deepspeed={file}", "ppe-npu[train]")
    deepspeed.init_distributed(dist_backend=devices.process_group_backend(device))


def total_steps(config: TrainConfig, records: int, processes: int = 1) -> int:
    """Optimizer steps of the whole run."""
    batches = math.ceil(records / (config.batch_size * processes))
    return config.max_steps or math.ceil(config.epochs * math.ceil(batches / config.accumulation(processes)))


def _arguments(config: TrainConfig, device, steps: int, processes: int = 1):
    """transformers' TrainingArguments for this run."""
    from transformers import TrainingArguments

    decay = {"num_decay_steps": math.ceil(steps * config.decay_fraction), "decay_type": "linear"}
    arguments = TrainingArguments(
        output_dir=config.output,
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation(processes),
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULERS[config.schedule],
        lr_scheduler_kwargs=decay if config.schedule == "stable_decay" else None,
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
        logging_nan_inf_filter=False,  # CompressedTrainer stops at the first one
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=not devices.on_cpu(device),
        remove_unused_columns=False,  # records are objects until the collator reads them
        report_to=[],
        deepspeed=config.deepspeed,
        ddp_find_unused_parameters=False,  # a batch without pictures touches the vision tower, too
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process (DataParallel) would tear prompts apart
    return arguments


def _save_final(config: TrainConfig, trainer: Any, processor: Any, base: dict[str, str]) -> Path:
    """output/final: the model as plain transformers reads it (the adapter as plain peft does), its processor,
    compression.json and base.json."""
    model, final = trainer.model, Path(config.output) / "final"
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # of all processes, where each holds a part
    compression = model.compression.config
    restore(model)
    if trainer.is_world_process_zero():
        with new_folder(final) as folder:
            if config.adapter is None:
                model.save_pretrained(folder, state_dict=weights)
            else:
                save_adapter(model, folder, weights)
            processor.save_pretrained(folder)
            write_json(folder / COMPRESSION, compression.to_dict())
            write_json(folder / BASE, base)
    trainer.accelerator.wait_for_everyone()
    return final
