"""transformers' Trainer with what this package adds: complete checkpoints that can be resumed, and a stop at NaN."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from ppe_npu.checkpoints.compressed import note_compression
from ppe_npu.compat import adapt_unwrap_model, drop_unknown_types
from ppe_npu.errors import FileError, TrainingError
from ppe_npu.files import put_folder, remove, write_json, writing
from ppe_npu.models import base_of
from ppe_npu.models.failing import check_alone
from ppe_npu.models.forward_pass import KEYWORD, ForwardPass
from ppe_npu.models.loss import Distillation
from ppe_npu.training.adapters import adapter_weights, set_adapter_weights, write_adapter
from ppe_npu.training.callbacks import Meter, TrainingProgress
from ppe_npu.training.checkpoint import BASE, IDENTITY, WHOLE
from ppe_npu.training.collator import NOTES
from ppe_npu.training.parts import parameter_groups
from ppe_npu.training.sampler import EpochSampler
from ppe_npu.training.validation import mean_loss
from ppe_npu.training.whole import made_by_train, whole_record

SAVING = ".saving"  # folder beside the checkpoints, in which one is written before it gets its name
_NAME = re.compile(r"checkpoint-[0-9]+")
RESUME = "then continue with --resume: nothing that was saved before is lost"


class CompressedTrainer(Trainer):
    """A Trainer whose model is compressed.

    A loss is the mean over all tokens of an optimizer step, so it does not depend on how the step is divided among
    processes and forward passes. A checkpoint appears under its name only when it is complete, and holds the processor,
    compression.json, base.json, identity.json, and whole.json, which lists its files.

    Args:
        base: the contents of base.json. identity: the contents of identity.json, given in the first process.
        newer: checkpoints later than the one that this run resumes from; dropped once the run has saved one itself.
        learning_rates: {part of the model: its learning rate}.
        lengths: the records' lengths, to batch similar ones together, or None. per_step: records per optimizer step.
        packing: join the samples of a forward in one row.
        distillation: settings of the loss against a teacher that sees all tokens, or None.
        frozen_teacher: whether the teacher is a frozen copy of the model as given; else it is the model itself.
    """

    def __init__(
        self,
        *args,
        base: Mapping[str, str],
        identity: Mapping[str, Any] | None = None,
        newer: Sequence[Path] = (),
        learning_rates: Mapping[str, float],
        lengths: Sequence[int] | None = None,
        per_step: int = 1,
        packing: bool = False,
        distillation: Distillation | None = None,
        frozen_teacher: bool = False,
        **kwargs,
    ) -> None:
        with _use_cache_kept(kwargs["model"].config):
            super().__init__(*args, **kwargs)
        self.base, self.identity, self.newer = base, identity or {}, list(newer)
        self.learning_rates, self.lengths, self.per_step = learning_rates, lengths, per_step
        if frozen_teacher:
            assert distillation is not None, "a frozen teacher needs a distillation"
            cast = torch.bfloat16 if self.is_deepspeed_enabled and self.args.bf16 else None  # like the student
            distillation = replace(distillation, teacher=_frozen(self.model, cast))
        # Only the loss is needed, so logits are not kept: see ppe_npu.models.loss.
        self.forward_options = {KEYWORD: ForwardPass(packed=packing, skip_logits=True, distill=distillation)}
        self.scoring_options = {KEYWORD: ForwardPass(packed=packing, skip_logits=True)}  # for validation: no teacher
        self.meter, self.window = Meter(), Meter()  # over all steps, and since the last log
        self._saving = False
        # transformers assumes that these models take no token count for the loss; their forward() hands it on.
        self.model_accepts_loss_kwargs = True

    def train(self, *args, **kwargs) -> Any:
        loaders = self.accelerator.gradient_state.dataloader_references
        before = list(loaders)
        try:
            return super().train(*args, **kwargs)
        finally:
            # A run that ends within an epoch does not exhaust its loader. accelerate's state, of which a process has
            # one, would hold that loader, and with it the data, this trainer and its model.
            for loader in [each for each in loaders if not any(each is other for other in before)]:
                loader.end()
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TrainingProgress):
                    callback.close()

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
        # state.epoch is a float; at an epoch's start it is a whole number up to rounding.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        epoch = lambda: int((self.state.epoch or 0.0) + 1e-6)  # noqa: E731
        return EpochSampler(len(dataset), self.args.seed, epoch, self.lengths, self.per_step)

    # -- a step --------------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, *args, **kwargs) -> torch.Tensor:
        notes = {name: inputs.pop(name, []) for name in NOTES}
        self._note_skipped(notes["skipped"])
        try:
            loss = super().training_step(model, inputs, *args, **kwargs)
        except Exception as error:
            if not self.meter.tokens and self.args.world_size == 1 and not self.is_deepspeed_enabled:
                self._check_alone(notes["sample_ids"], error)
            raise
        for meter in (self.meter, self.window):
            meter.add(self.model.compression.report)
        if not torch.isfinite(loss):
            guilty = ", ".join(self._guilty(notes["sample_ids"]))
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, for sample(s) {guilty}: "
                "lower the learning rate, or look for broken records in the data"
            )
        return loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        options = self.forward_options if model.training else self.scoring_options
        # Some transformers releases number the text after a video otherwise than Qwen2.5-VL was trained. There a dense
        # model numbers it as trained only without token types.
        untold = {} if self.model.compression.vision.text_behind_time else {"mm_token_type_ids": None}
        return super().compute_loss(model, {**inputs, **untold, **options}, *args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """{"eval_loss": mean loss of the validation records}, which is also logged and passed to the callbacks."""
        found = {f"{metric_key_prefix}_loss": mean_loss(self, (eval_dataset or self.eval_dataset).records)}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs["tokens_per_second"] = self.window.speed(self.args.world_size)
            if self.window.retention is not None:
                logs["retention"] = self.window.retention
            self.window = Meter()
        super().log(logs, *args, **kwargs)

    def _note_skipped(self, skipped: Sequence[Sequence[str]]) -> None:
        """Append the records of a batch that could not be read to this process's skipped-N.jsonl, at once."""
        if not skipped:
            return
        file = Path(self.args.output_dir) / f"skipped-{self.args.process_index}.jsonl"
        with writing(file, then=RESUME), open(file, "a", encoding="utf-8", errors="backslashreplace") as lines:
            for name, reason in skipped:
                row = {"step": self.state.global_step + 1, "id": name, "reason": reason}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")

    @torch.no_grad()
    def _check_alone(self, names: Sequence[str], error: Exception) -> None:
        """Raise InputError if the model also fails on one of these records without compression and packing."""
        model = base_of(self.model)
        for record in (record for record in self.train_dataset.records if record.id in names):
            inputs = self.data_collator([replace(record, independent=False)])
            inputs = self._prepare_inputs({key: inputs[key] for key in inputs.keys() - {*NOTES, "labels"}})
            with self.compute_loss_context_manager():
                check_alone(model, partial(model, **drop_unknown_types(model, inputs)), error)

    def _guilty(self, names: Sequence[str]) -> list[str]:
        """The ids of those samples of a batch whose own loss is not finite. With several processes it is all of them,
        because one process cannot run the model without the others."""
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
        new ones ("model.visual.*"), finds none, warns, and continues with the weights that the run started from.
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
            write_adapter(self.model, folder, state_dict)
            self.processing_class.save_pretrained(folder)
        if self.args.should_save:
            note_compression(folder, self.model.compression.config)
            write_json(folder / BASE, dict(self.base))

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / SAVING) if self._saving else folder

    def _save_checkpoint(self, model, trial) -> None:
        """Write a checkpoint into SAVING, and move it to its name when every process has written its part.

        Nothing is saved after the last step: final/ is about to be written, and transformers (5.22) takes one step too
        many when it resumes a run that is at its end.
        """
        if self.state.global_step >= self.state.max_steps:
            return
        made = Path(self.args.output_dir) / SAVING / f"checkpoint-{self.state.global_step}"
        try:
            with writing(made, then=RESUME):
                with self._aside():
                    super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self._name(made)
        except FileError:
            remove(made)  # it takes up space on a disk that may be full
            raise
        self.accelerator.wait_for_everyone()

    def _name(self, made: Path) -> None:
        """Move a checkpoint that every process has written to its name, and drop the oldest beyond save_total_limit."""
        step = self.state.global_step
        write_json(made / IDENTITY, dict(self.identity))
        write_json(made / WHOLE, whole_record(made, step))
        place = made.parent.parent / made.name
        put_folder(made, place)
        self.drop_newer(besides=place)
        own = [path for path in checkpoints(place.parent) if made_by_train(path) and not path.is_symlink()]
        for old in [path for path in own if step_of(path) <= step][: -self.args.save_total_limit]:
            drop(old)

    def drop_newer(self, besides: Path | None = None) -> None:
        """Remove the checkpoints in self.newer, which this run replaces or will not reach, except `besides`."""
        for path in self.newer:
            if path != besides:
                drop(path)
        self.newer = []

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        self._saving = True
        try:
            yield
        finally:
            self._saving = False


def _frozen(model: Any, dtype: torch.dtype | None = None) -> Any:
    """A frozen copy of the model for conditional generation, adapters included, in eval mode. dtype: the parameters'
    (buffers stay as they are); None: unchanged."""
    found = copy.deepcopy(model)
    inner = found if isinstance(found, PreTrainedModel) else found.get_base_model()
    for parameter in inner.parameters() if dtype is not None else ():
        parameter.data = parameter.data.to(dtype)
    return inner.requires_grad_(False).eval()


@contextlib.contextmanager
def _use_cache_kept(config: Any) -> Iterator[None]:
    """Restore config.use_cache, which transformers' Trainer sets to False: generation from the saved model would then
    run without a cache."""
    before = {name: value for name, value in vars(config).items() if name == "use_cache"}
    yield
    vars(config).pop("use_cache", None)
    vars(config).update(before)


def drop(path: Path) -> None:
    """Remove a checkpoint or final/. It is renamed first, so that a kill leaves no partial folder under its name."""
    aside = path.parent / SAVING / f"dropped-{path.name}"
    if not path.exists():
        return
    with writing(path):
        aside.parent.mkdir(exist_ok=True)
        remove(aside)
        path.rename(aside)
        remove(aside)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(output: str | Path) -> list[Path]:
    """All folders named checkpoint-N in an output folder, oldest first, whatever program wrote them."""
    found = [path for path in Path(output).glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def last_whole_checkpoint(output: str | Path) -> Path | None:
    """The newest checkpoint that a run finished saving, or None."""
    return next((folder for folder in reversed(checkpoints(output)) if (folder / WHOLE).exists()), None)
