"""transformers' Trainer, with what this package adds: whole checkpoints that really resume, and a stop at NaN."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ppe_npu.compat import adapt_unwrap_model, prepare_transformers

prepare_transformers()  # before the import of Trainer, which fails beside a torchvision that does not load

from transformers import PreTrainedModel, Trainer  # noqa: E402

from ppe_npu.errors import TrainingError  # noqa: E402
from ppe_npu.files import write_json  # noqa: E402
from ppe_npu.models.arguments import PACKED  # noqa: E402
from ppe_npu.models.loss import DISTILL, SKIP_LOGITS, Distillation  # noqa: E402
from ppe_npu.training.adapters import adapter_weights, save_adapter, set_adapter_weights  # noqa: E402
from ppe_npu.training.callbacks import Meter  # noqa: E402
from ppe_npu.training.checkpoint import BASE, COMPRESSION, WHOLE  # noqa: E402
from ppe_npu.training.collator import NOTES  # noqa: E402
from ppe_npu.training.parts import parameter_groups  # noqa: E402
from ppe_npu.training.sampler import EpochSampler  # noqa: E402

_SAVING = ".saving"  # beside the checkpoints, where one is made before it takes its place


class CompressedTrainer(Trainer):
    """A Trainer whose model is compressed.

    A loss is the mean over all tokens of an optimizer step, whichever process or forward pass they fall to: so it does
    not depend on how the step is cut. A checkpoint appears under its name when it is whole, and holds the processor,
    compression.json and base.json.

    Args:
        base: what base.json shall hold.
        learning_rates: of each part of the model.
        lengths: of the records, to bring like ones together, or None. per_step: records of an optimizer step.
        packing: the samples of a forward in one row. distillation: from the model that sees everything, or None.
    """

    def __init__(
        self,
        *args,
        base: Mapping[str, str],
        learning_rates: Mapping[str, float],
        lengths: Sequence[int] | None = None,
        per_step: int = 1,
        packing: bool = False,
        distillation: Distillation | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.base, self.learning_rates, self.lengths, self.per_step = base, learning_rates, lengths, per_step
        # The loss alone: see ppe_npu.models.loss.
        self.forward_options = {SKIP_LOGITS: True, PACKED: packing, DISTILL: distillation}
        self.meter, self.window = Meter(), Meter()  # of all steps, and since the last log
        self._saving = False
        # transformers believes that these models' losses take no token count; their forward hands it on.
        self.model_accepts_loss_kwargs = True

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        adapt_unwrap_model(self.accelerator)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(self.model, self.learning_rates, self.args.weight_decay)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        # state.epoch is a fraction; at an epoch's start it is whole but for rounding.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        epoch = lambda: int((self.state.epoch or 0.0) + 1e-6)  # noqa: E731
        return EpochSampler(len(dataset), self.args.seed, epoch, self.lengths, self.per_step)

    # -- a step --------------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, *args, **kwargs) -> torch.Tensor:
        notes = {name: inputs.pop(name, []) for name in NOTES}
        self._note_skipped(notes["skipped"])
        loss = super().training_step(model, inputs, *args, **kwargs)
        for meter in (self.meter, self.window):
            meter.add(self.model.compression.report)
        if not torch.isfinite(loss):
            guilty = ", ".join(self._guilty(notes["sample_ids"]))
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, of sample(s) {guilty}: "
                "lower the learning rate, or look for broken records in the data"
            )
        return loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, {**inputs, **self.forward_options}, *args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs["tokens_per_second"] = self.window.speed(self.args.world_size)
            if self.window.retention is not None:
                logs["retention"] = self.window.retention
            self.window = Meter()
        super().log(logs, *args, **kwargs)

    def _note_skipped(self, skipped: Sequence[Sequence[str]]) -> None:
        """Count records that broke while the epoch ran, and write each down at once."""
        if not skipped:
            return
        file = Path(self.args.output_dir) / f"skipped-{self.args.process_index}.jsonl"
        with open(file, "a", encoding="utf-8") as lines:
            for name, reason in skipped:
                row = {"step": self.state.global_step + 1, "id": name, "reason": reason}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _guilty(self, names: Sequence[str]) -> list[str]:
        """Those of a batch's samples whose own loss is not finite. With several processes, all of them: one process
        alone cannot run the model again."""
        if self.args.world_size > 1 or len(names) < 2:
            return list(names)
        records = {record.id: record for record in self.train_dataset.records}
        return [name for name in names if not self._finite(records[name])] or list(names)

    @torch.no_grad()
    def _finite(self, record) -> bool:
        inputs = {key: value for key, value in self.data_collator([record]).items() if key not in NOTES}
        with self.compute_loss_context_manager():
            return bool(torch.isfinite(self.compute_loss(self.model, self._prepare_inputs(inputs))))

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Load the weights through from_pretrained, and refuse a checkpoint that lacks any.

        save_pretrained writes Qwen2.5-VL's old key names ("visual.*"); transformers' own resume (5.22) looks for the
        new ones ("model.visual.*"), finds none, warns, and goes on with the weights that the run started from.
        """
        model = model or self.model
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif isinstance(model, PreTrainedModel):
            saved = type(model).from_pretrained(
                resume_from_checkpoint, dtype=model.dtype, trust_remote_code=False, use_safetensors=True
            )
            model.load_state_dict(saved.state_dict())
        else:
            set_adapter_weights(model, adapter_weights(resume_from_checkpoint), resume_from_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if isinstance(self.model, PreTrainedModel):
            super()._save(folder, state_dict)
        elif self.args.should_save:
            save_adapter(self.model, folder, state_dict)
            self.processing_class.save_pretrained(folder)
        if self.args.should_save:
            write_json(folder / COMPRESSION, self.model.compression.config.to_dict())
            write_json(folder / BASE, dict(self.base))

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / _SAVING) if self._saving else folder

    def _save_checkpoint(self, model, trial) -> None:
        """A checkpoint is made aside, and takes its name when every process has written its part.

        None after the last step: final/ is about to be written, and transformers (5.22) takes one step too many when it
        resumes a run that is at its end.
        """
        if self.state.global_step >= self.state.max_steps:
            return
        with self._aside():
            made = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_json(made / WHOLE, {"step": self.state.global_step})
            place = made.parent.parent / made.name
            shutil.rmtree(place, ignore_errors=True)
            made.replace(place)
            for old in checkpoints(place.parent)[: -self.args.save_total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        self._saving = True
        try:
            yield
        finally:
            self._saving = False


def checkpoints(output: str | Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first."""
    found = [path for path in Path(output).glob("checkpoint-*") if path.name.split("-")[-1].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def last_whole_checkpoint(output: str | Path) -> Path | None:
    """The newest whole checkpoint, or None; what was cut off while it was saved is removed."""
    shutil.rmtree(Path(output) / _SAVING, ignore_errors=True)
    for folder in reversed(checkpoints(output)):
        if (folder / WHOLE).is_file():
            return folder
        shutil.rmtree(folder)
    return None
