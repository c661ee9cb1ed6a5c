"""train(config): a checkpoint and LLaVA-style data -> a fine-tuned checkpoint, compressed while it learns."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.compressed import note_compression
from ppe_npu.checkpoints.loading import check_compression, load_model, load_processor
from ppe_npu.data.inputs import PixelCache
from ppe_npu.data.tiles import is_tiled
from ppe_npu.errors import InputError
from ppe_npu.files import new_folder, write_json
from ppe_npu.models import another_k, compress, restore
from ppe_npu.models.fused import check_key_bias
from ppe_npu.models.known import text_model
from ppe_npu.models.loss import Distillation
from ppe_npu.models.pvc.install import add_pvc, fit_processor, pvc_of
from ppe_npu.training.adapters import add_adapter, check_adapter, quantization, write_adapter
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.checkpoint import BASE, base_record
from ppe_npu.training.collator import Collator
from ppe_npu.training.data import ChatDataset, Record, check_paths
from ppe_npu.training.leftovers import skipped_files
from ppe_npu.training.parts import freeze, parameter_count
from ppe_npu.training.start import check_deepspeed, start_group, total_steps
from ppe_npu.training.survey import Survey, prepare_records
from ppe_npu.training.validation import VALIDATION, held_back
from ppe_npu.utils.optional import named_for_pip, optional

_CACHE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        final: folder of the final checkpoint: model or adapter, processor, compression.json, base.json.
        steps: optimizer steps of the whole run.
        losses: [(step, mean loss since the last entry)].
        seconds: duration of the training in this call, without loading.
        parameters, trainable: number of all parameters, and of those that learn.
        tokens_per_second: prompt tokens before compression per second, in this call.
        retention: share of the visual tokens that this call kept, averaged over decoder layers; None without any.
        skipped: records that could not be read during training, over all processes.
        peak_memory: largest number of bytes that torch held on the first process's device; None on a CPU.
        validation: [(step, mean loss of the validation records)].
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
    validation: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The attributes as values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainResult:
        """The result that a run's summary.json holds."""
        own = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        pairs = {name: [tuple(pair) for pair in values.get(name, ())] for name in ("losses", "validation")}
        return cls(**{**own, **pairs})


def train(config: TrainConfig, announce: bool = True, said: str | None = None) -> TrainResult:
    """Fine-tune a model with compression inside its forward pass.

    Under torchrun, each process takes a part of every batch. The losses equal those of one process on the same global
    batch, because they are averaged over all its tokens. The first process writes the output.

    output/final loads in plain transformers (an adapter in plain peft), and further training can start from it. The
    output also has train.json (all settings), data.md (the survey of the data), summary.json, summary.md and loss.png.

    Args:
        config: the settings of the run.
        announce: print the table of parameters, data, steps and operators before step 1.
        said: a line to print below the table.

    Raises:
        InputError: a model, data or output that cannot be used; raised before anything long starts.
        TrainingError: the loss is NaN or infinite, or a parameter that should learn gets no gradient.
    """
    from ppe_npu.training.output import check_output, say, sole_run

    device, first, processes = devices.resolve(config.device), devices.process_rank() == 0, devices.process_count()
    _check(config, device, processes)
    fitted = check_compression(config.model, config.compression, allow_bin=config.allow_bin, tiled=True)[0]
    if fitted is not config.compression:
        if first:
            say(another_k(config.compression, fitted))
        config = dataclasses.replace(config, compression=fitted)
    if first and config.distill_weight == 1 and not config.copies_teacher:
        say(
            "distill_weight=1: the only teacher is the model itself, and the two may come to agree on wrong answers: "
            "set distill_teacher: start, or a weight below 1"
        )
    with sole_run(Path(config.output)) if first else contextlib.nullcontext():
        if first:
            check_output(config)
        try:
            return _train(config, device, first, processes, announce, said)
        except KeyboardInterrupt:
            from ppe_npu.training.going_on import how_to_go_on

            raise KeyboardInterrupt(how_to_go_on(config) if first else "") from None


def _train(config: TrainConfig, device, first: bool, processes: int, announce: bool, said: str | None) -> TrainResult:
    """train() once the output folder is locked against other runs."""
    from ppe_npu.training import going_on, output

    checkpoint = output.checkpoint_to_resume(config) if first else None
    before = going_on.compared_with(config, checkpoint) if first else None
    if first:
        output.check_settings(config, before)
        output.check_checkpoint(config, checkpoint)
    processor = _processor(config)
    records, survey, validation = _records(config, processor, config.output if first and checkpoint is None else None)
    identity, marks = output.run_identity(config, processor, records, processes) if first else ({}, [])
    if first:
        output.check_identity(config, before, identity, records, marks)
    steps = total_steps(config, len(records), processes)
    arguments = start_group(config, device, steps, processes)
    devices.wait_for_all()  # until the first process has checked the output
    if not first:
        checkpoint = output.checkpoint_to_resume(config)
        before = going_on.compared_with(config, checkpoint)
    devices.seed_everything(config.seed)
    model, base = _model(config, arguments.device)
    output.check_base(before, base)
    ended = going_on.finished(config, checkpoint, steps)
    if first:
        going_on.say_where_from(config, checkpoint, steps, ended)
    if ended is not None:
        return TrainResult.from_dict(ended)
    newer = output.begin_output(config, checkpoint, steps, identity, marks) if first else []
    devices.wait_for_all()
    known = {"base": base, "identity": identity, "newer": newer}
    trainer = _trainer(config, arguments, model, processor, (records, survey, validation), processes, known)
    if announce and first:
        from ppe_npu.training.announce import describe_run

        print(describe_run(config, model, survey, steps, device, processes, said), flush=True)
    result = _learn(trainer, config, processor, base, checkpoint)
    if first:
        from ppe_npu.training.summary import write_summary

        about = {"settings": config.to_dict(), "data": survey.to_dict(), "versions": _versions(arguments.device)}
        write_summary(config.output, {**result.to_dict(), **about})
    return result


def _learn(trainer: Any, config: TrainConfig, processor: Any, base: dict[str, str], checkpoint: Path | None):
    """Train from the checkpoint, or from the start, write final/, and return the run's TrainResult."""
    devices.reset_peak_memory(trainer.args.device)
    started, steps = time.perf_counter(), trainer.args.max_steps
    # fp32 means full precision: by default CUDA and Ascend round the inputs of convolutions.
    with devices.exact_matmul() if config.dtype == "fp32" else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if config.validates and not (config.eval_steps and steps % config.eval_steps == 0):
            trainer.evaluate()
    result = _result(trainer, _save_final(config, trainer, processor, base), time.perf_counter() - started)
    trainer.drop_newer()
    return result


def _check(config: TrainConfig, device, processes: int) -> None:
    """Raise InputError for every fault of the settings that can be found before the data is read."""
    if config.fused_adamw and devices.keeps_cleared_gradients(device):
        raise InputError(
            "fused_adamw does not work on an NPU: NpuFusedAdamW does not see that transformers' Trainer clears the "
            "gradients, and would keep using those of the first step; leave it out"
        )
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        remedy = f"pip install {named_for_pip('ppe-npu[train]')}, or leave it out"
        raise InputError(f"tensorboard is requested but not installed: {remedy}")
    if config.wandb:
        optional("wandb", "wandb", "wandb")
    if config.adapter is not None:
        check_adapter(config.adapter, device)
        if config.adapter.kind == "qlora" and config.dtype != "bf16":
            raise InputError(f"dtype={config.dtype!r} with adapter kind='qlora': give bf16, in which it computes")
    config.accumulation(processes)
    if config.deepspeed is not None:
        check_deepspeed(config.deepspeed, device, copies=config.copies_teacher)
    check_paths((*config.data, *config.validation_data), config.data_root)


def _processor(config: TrainConfig) -> Any:
    processor = load_processor(config.model, config.min_pixels, config.max_pixels)
    fit_processor(processor, config.model, config.pvc)
    return processor


def _records(config: TrainConfig, processor: Any, folder: str | None) -> tuple[list[Record], Survey, list[Record]]:
    """(training records, their survey, validation records); the survey is written to `folder`, unless it is None."""
    how = (processor, config.compression, config.sampling, config.data_root, config.max_length, config.invalid)
    shown = pvc_of(config.model, config.pvc)
    more = {"workers": config.num_workers, "allow_outside": config.allow_outside}
    more["showings"] = 1 if shown is None else shown.showings
    records, survey = prepare_records(config.data, *how, folder=folder, **more)
    validation = prepare_records(config.validation_data, *how, **more)[0] if config.validation_data else []
    if config.validation_share:
        survey, apart = survey.split(held_back(len(records), config.validation_share, config.seed))
        records, validation = list(survey.records), list(apart.records)
    apart = next((record for record in records if record.independent), None)
    if config.packing and apart is not None:
        raise InputError(f"{apart.where} has independent questions, which are packed already: leave packing out")
    if apart is not None and is_tiled(processor):
        raise InputError(
            f"{apart.where} has independent questions, which only Qwen's families pack: write one per record"
        )
    return records, survey, validation


def _model(config: TrainConfig, device) -> tuple[Any, dict[str, str]]:
    """(the model, compressed and ready to train on its device; the contents of base.json)."""
    # With an adapter the model's own weights do not learn, so bf16 is enough for them; the adapter's are fp32.
    dtype = "bf16" if config.adapter is not None and config.dtype == "bf16" else "fp32"
    packed = quantization(config.adapter, device)
    model = load_model(config.model, device, dtype, quantization_config=packed, allow_bin=config.allow_bin, tiled=True)
    base = base_record(model, config.model, config.allow_bin)
    if config.pvc is not None and not hasattr(model.config, "pvc"):
        model = add_pvc(model, config.pvc)
    model = compress(model, config.compression)
    if config.packing and config.compression.proportional_attention:
        check_key_bias(text_model(model.model), packed=True)
    if config.adapter is not None:
        model = add_adapter(model, config.adapter)
    freeze(model, config.all_frozen)
    return model.train(), base


def _trainer(config, arguments, model, processor, data, processes: int, known: dict[str, Any]):
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from ppe_npu.training.callbacks import GradientCheck, TrainingProgress
    from ppe_npu.training.loop import CompressedTrainer

    records, survey, validation = data
    cache = PixelCache(_CACHE_BYTES) if config.cache_pixels else None
    distill = config.distill_weight and Distillation(config.distill_weight, config.distill_temperature)
    trainer = CompressedTrainer(
        model=model,
        args=arguments,
        data_collator=Collator(
            processor,
            model.compression.vision,
            config.sampling,
            cache,
            skip_broken=config.invalid == "skip",
            shown_by=model.config if hasattr(model.config, "pvc") else None,
        ),
        train_dataset=ChatDataset(records),
        eval_dataset=ChatDataset(validation) if validation else None,
        processing_class=processor,
        callbacks=[TrainingProgress("/".join(Path(config.output).parts[-2:])), GradientCheck(), *_curves(config)],
        **known,
        learning_rates=config.learning_rates,
        lengths=survey.after.tolist() if config.group_by_length else None,
        per_step=config.batch_size * config.accumulation(processes) * processes,
        packing=config.packing,
        distillation=distill or None,
        frozen_teacher=config.copies_teacher,
    )
    for callback in (PrinterCallback, ProgressCallback):  # TrainingProgress replaces both
        trainer.remove_callback(callback)
    return trainer


def _curves(config: TrainConfig) -> list[Any]:
    """transformers' callbacks for TensorBoard and Weights & Biases, as configured; none but in the first process."""
    if devices.process_rank() != 0:
        return []
    found: list[Any] = []
    if config.tensorboard:
        from transformers.integrations import TensorBoardCallback

        from ppe_npu.training.curves import CurveFile

        found.append(TensorBoardCallback(CurveFile(Path(config.output) / "tensorboard")))
    if config.wandb:
        from transformers.integrations import WandbCallback

        found.append(WandbCallback())
    return found


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
        skipped=sum(file.read_bytes().count(b"\n") for file in skipped_files(final.parent)),
        peak_memory=devices.peak_memory(trainer.args.device),
        validation=[(row["step"], row[VALIDATION]) for row in trainer.state.log_history if VALIDATION in row],
    )


def _versions(device) -> dict[str, str]:
    """The versions of the packages that affect the numbers, and the device's name."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "accelerate")
    return {name: version(name) for name in packages} | {"device": devices.describe(device)["name"]}


def _save_final(config: TrainConfig, trainer: Any, processor: Any, base: dict[str, str]) -> Path:
    """Write output/final: the model for plain transformers (or the adapter for plain peft), its processor,
    compression.json and base.json."""
    model, final = trainer.model, Path(config.output) / "final"
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered, where each process holds a part
    compression = model.compression.config
    restore(model)
    if trainer.is_world_process_zero():
        with new_folder(final) as folder:
            if config.adapter is None:
                model.save_pretrained(folder, state_dict=weights)
            else:
                write_adapter(model, folder, weights)
            processor.save_pretrained(folder)
            note_compression(folder, compression)
            write_json(folder / BASE, base)
    trainer.accelerator.wait_for_everyone()
    return final
