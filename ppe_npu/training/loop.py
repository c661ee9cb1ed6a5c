"""transformers' Trainer, with what this package adds: whole checkpoints that really resume, and a stop at NaN."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ppe_npu.compat import adapt_unwrap_model, prepare_transformers

prepare_transformers()  # before the import of Trainer, which fails beside a torchvision that does not load

from tqdm import tqdm  # noqa: E402
from transformers import PreTrainedModel, Trainer, TrainerCallback  # noqa: E402

from ppe_npu.errors import TrainingError  # noqa: E402
from ppe_npu.files import write_json  # noqa: E402
from ppe_npu.training.collator import NOTES  # noqa: E402

_WHOLE = "whole.json"  # written into a checkpoint last: one without it was cut off


class EpochSampler(torch.utils.data.Sampler):
    """All records in an order that depends on the seed and the epoch alone.

    accelerate 1.1.1 does not pass the epoch on to its own sampler when it skips the batches that a resumed run has
    seen: the rest of that epoch would come in the first epoch's order.

    Args:
        records: how many.
        seed: of the order.
        epoch: tells the epoch when an order is asked for.
    """

    def __init__(self, records: int, seed: int, epoch: Callable[[], int]) -> None:
        self.records, self.seed, self.epoch = records, seed, epoch

    def __len__(self) -> int:
        return self.records

    def __iter__(self) -> Iterator[int]:
        # Spread, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        yield from torch.randperm(self.records, generator=generator).tolist()


class Progress(TrainerCallback):
    """One bar a run, with the loss behind it."""

    def __init__(self, title: str) -> None:
        self.title, self.bar = title, None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, unit="step")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.bar is not None and "loss" in (logs or {}):
            self.bar.set_postfix(loss=logs["loss"])

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.close()


class CompressedTrainer(Trainer):
    """A Trainer whose model is compressed.

    Its checkpoints hold compression.json, and a marker once they are whole. A loss is the mean over all tokens of an
    optimizer step, whichever process or forward pass they fall to: so it does not depend on how the step is cut.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # transformers believes that these models' losses take no token count; their forward hands it on.
        self.model_accepts_loss_kwargs = True

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        adapt_unwrap_model(self.accelerator)

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        # state.epoch is a fraction; at an epoch's start it is whole but for rounding.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return EpochSampler(len(dataset), self.args.seed, lambda: int((self.state.epoch or 0.0) + 1e-6))

    def _prepare_inputs(self, inputs):
        return super()._prepare_inputs({key: value for key, value in inputs.items() if key not in NOTES})

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: "
                "lower the learning rate, or look for broken records in the data"
            )
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Load the weights through from_pretrained, and refuse a checkpoint that lacks any.

        save_pretrained writes Qwen2.5-VL's old key names ("visual.*"); transformers' own resume (5.22) looks for the
        new ones ("model.visual.*"), finds none, warns, and goes on with the weights that the run started from.
        """
        model = model or self.model
        if not isinstance(model, PreTrainedModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_json(
                Path(output_dir or self.args.output_dir) / "compression.json", self.model.compression.config.to_dict()
            )

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # until every process has written its part
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            write_json(folder / _WHOLE, {"step": self.state.global_step})


def checkpoints(output: str | Path) -> list[Path]:
    """All checkpoint folders of a run, whole or not, oldest first."""
    found = [path for path in Path(output).glob("checkpoint-*") if path.name.split("-")[-1].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def last_whole_checkpoint(output: str | Path) -> Path | None:
    """The newest whole checkpoint, or None; newer ones that were cut off are removed."""
    for folder in reversed(checkpoints(output)):
        if (folder / _WHOLE).is_file():
            return folder
        shutil.rmtree(folder)
    return None
