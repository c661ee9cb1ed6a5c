"""TrainConfig: everything that decides a training run, checked when it is made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ppe_npu.checkpoints.loading import DTYPES
from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import Drawn, VideoSampling
from ppe_npu.errors import InputError, shown
from ppe_npu.models.pvc.config import PVCConfig
from ppe_npu.settings import check_fields, fields_to_plain, setting
from ppe_npu.training.adapters import Adapter
from ppe_npu.training.survey import INVALID, MOST_WORKERS

LAST_WHOLE = "last-whole"  # resume_from_checkpoint: the newest checkpoint that is not damaged
SCHEDULES = ("constant", "linear", "cosine", "stable_decay")
TEACHERS = ("present", "start")
# May differ between a run and its resumption: none of them changes a loss.
_FREE = (
    *("output", "resume", "overwrite", "logging_steps", "save_steps", "save_total_limit", "num_workers"),
    *("cache_pixels", "tensorboard", "resume_from_checkpoint", "allow_outside", "allow_bin"),
    *("wandb", "validation_data", "eval_steps"),
)
_NUMBER_OF_SEEDS = 2**32  # NumPy's


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run.

    Attributes:
        model: checkpoint folder or hub id to start from.
        data: .json or .jsonl file(s) of LLaVA-style records; several are joined, and shuffled together.
        data_root: folder that the records' relative paths start from; None: the folder of each data file.
        allow_outside: whether records may name files outside that folder, by absolute paths, "..", or links.
        allow_bin: whether pytorch_model.bin is read (with torch's weights_only) where the model has no safetensors.
        output: folder for checkpoints, summary.json and final/.
        compression: a preset's name, the path of a JSON file, a dict of its keys, or a CompressionConfig.
        device: auto, cpu, cuda or npu.
        dtype: "fp32", or "bf16" for autocast over fp32 weights.
        epochs: passes over the data; ignored when max_steps is given.
        max_steps: optimizer steps.
        batch_size: records per forward; gradient_accumulation: forwards per optimizer step.
        global_batch: records per optimizer step over all processes, in place of gradient_accumulation.
        learning_rate, betas, weight_decay, max_grad_norm: settings of AdamW.
        merger_learning_rate, vision_learning_rate, pvc_learning_rate: learning rates of these parts; None: the same
            as the language model's.
            0 freezes a part.
        warmup_steps: steps of linear warm-up from 0; a value below 1 is a fraction of all steps.
        schedule: after the warm-up: "constant"; "linear" down to 0; "cosine" down to least_rate times the rate; or
            "stable_decay", constant, then linear down to 0 over the last decay_fraction of the steps.
        seed: decides the order of the data and everything random.
        save_steps: steps between checkpoints; 0: no checkpoints, only final/.
        logging_steps: steps between log entries, which hold the loss.
        frozen: what does not learn: "language", "merger", "vision", "pvc", or prefixes of parameter names.
        adapter: LoRA, DoRA or QLoRA in place of the model's own weights: a kind, a dict of Adapter's keys, an Adapter.
        max_length: largest number of tokens of a record after compression; longer records cannot be used.
        invalid: what to do with records that cannot be used: "stop", or "skip", which counts and lists them. "skip"
            also covers records whose files turn out to be damaged during an epoch.
        group_by_length: put records of similar length after compression into one batch, to save padding.
        packing: join the records of a forward in one row, without padding; the losses are the same.
        distill_weight: weight of self-distillation in the loss, in [0, 1]; the teacher is the same model, and sees all
            tokens. distill_temperature: temperature of both distributions.
        distill_teacher: "present": the teacher has the model's present weights; "start": it is a frozen copy of the
            model at the start of the run, which needs memory for a second set of weights and excludes ZeRO-3.
        gradient_checkpointing: recompute activations to save memory.
        fused_adamw: torch's fused AdamW. Refused on an NPU: see docs/npu.md.
        deepspeed: "zero2", "zero2_offload", "zero3", "zero3_offload" (scripts/deepspeed_configs) or a JSON file, for
            runs that torchrun or deepspeed starts; None: plain data parallelism if there are several processes.
        resume: continue from the newest checkpoint in output, if there is one; a damaged one is refused.
        resume_from_checkpoint: resume from this checkpoint: "checkpoint-N" in output, a path, or "last-whole" for the
            newest that is not damaged.
        overwrite: drop what an earlier run left in output.
        save_total_limit: number of checkpoints that are kept.
        tensorboard: write curves to output/tensorboard.
        wandb: write curves to Weights & Biases, by its own settings (WANDB_PROJECT, WANDB_MODE=offline, ...).
        validation_data: .json or .jsonl file(s) of records that are not trained on, and whose loss is reported; their
            relative paths start from data_root, too.
        validation_share: in place of such files, the share of the records that is held back, drawn by seed.
        eval_steps: steps between reports of the validation loss; 0: only after the last step.
        num_workers: processes that prepare batches; 0: this one.
        cache_pixels: keep processed pictures in memory (up to 2 GiB), for small data over many epochs.
        min_pixels, max_pixels: bounds on an image's size; None: the checkpoint's.
        video: which frames of a video are taken, and how large they are.
        video_frames: (least, most) frames per video; the number is drawn between them by seed and the video's name.
        pvc: modules of ppe_npu.models.pvc to add to an InternVL or a Qwen2.5-VL that has none, True for the defaults;
            a checkpoint that has them keeps its own. Every image is then shown pvc.showings times.

    Raises:
        InputError: an impossible value, which the message names in one line.
    """

    model: str = setting(path=True)
    data: str | tuple[str, ...] = setting(path=True, convert=lambda data: (data,) if isinstance(data, str) else data)
    output: str = setting(path=True, written=True)
    data_root: str | None = setting(None, path=True)
    allow_outside: bool = False
    allow_bin: bool = False
    compression: str | CompressionConfig | Mapping[str, Any] = setting(
        "ppe", path=".json", convert=lambda value: as_compression(value)
    )
    device: str = "auto"
    dtype: str = setting("fp32", choices=DTYPES)
    epochs: float = setting(1.0, above=0, most=1e6)
    max_steps: int | None = setting(None, above=0)
    batch_size: int = setting(1, above=0)
    gradient_accumulation: int = setting(1, above=0)
    global_batch: int | None = setting(None, above=0)
    learning_rate: float = setting(1e-5, above=0)
    merger_learning_rate: float | None = setting(None, least=0)
    vision_learning_rate: float | None = setting(None, least=0)
    pvc_learning_rate: float | None = setting(None, least=0)
    warmup_steps: float = setting(0.0, least=0)
    schedule: str = setting("cosine", choices=SCHEDULES)
    decay_fraction: float = setting(0.5, above=0, most=1)
    least_rate: float = setting(0.0, least=0, most=1)
    weight_decay: float = setting(0.0, least=0)
    betas: tuple[float, float] = setting((0.9, 0.999), least=0, below=1)
    max_grad_norm: float = setting(1.0, least=0)
    seed: int = setting(0, least=0, below=_NUMBER_OF_SEEDS)
    save_steps: int = setting(0, least=0)
    save_total_limit: int = setting(2, above=0)
    tensorboard: bool = False
    wandb: bool = False
    validation_data: str | tuple[str, ...] = setting(
        (), path=True, convert=lambda data: (data,) if isinstance(data, str) else data
    )
    validation_share: float = setting(0.0, least=0, below=1)
    eval_steps: int = setting(0, least=0)
    logging_steps: int = setting(10, above=0)
    frozen: tuple[str, ...] = setting((), single=True)
    adapter: str | Adapter | Mapping[str, Any] | None = setting(None, convert=lambda value: _as_adapter(value))
    max_length: int | None = setting(None, above=0)
    invalid: str = setting("stop", choices=INVALID)
    group_by_length: bool = False
    packing: bool = False
    distill_weight: float = setting(0.0, least=0, most=1)
    distill_temperature: float = setting(1.0, above=0)
    distill_teacher: str = setting("present", choices=TEACHERS)
    gradient_checkpointing: bool = False
    fused_adamw: bool = False
    deepspeed: str | None = setting(None, path=".json", convert=lambda name: name and _deepspeed_file(name))
    resume: bool = False
    resume_from_checkpoint: bool | str | None = setting(None, path=True)
    overwrite: bool = False
    num_workers: int = setting(0, least=0, most=MOST_WORKERS)
    cache_pixels: bool = False
    min_pixels: int | None = setting(None, above=0)
    max_pixels: int | None = setting(None, above=0)
    video: VideoSampling = setting(default_factory=VideoSampling)
    video_frames: tuple[int, int] | None = setting(None, above=0)
    pvc: bool | PVCConfig | None = setting(None, convert=lambda value: PVCConfig() if value is True else value or None)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.data:
            raise InputError("data is an empty list: name a .json or .jsonl file of records")
        if self.distill_weight and self.compression.is_dense:
            raise InputError("distill_weight needs compression: without it the teacher sees what the student sees")
        if self.least_rate and self.schedule != "cosine":
            raise InputError(
                f"least_rate={self.least_rate} with schedule={self.schedule!r}, which does not decay to it: give "
                "schedule='cosine', or leave it out"
            )
        if self.global_batch is not None and self.gradient_accumulation != 1:
            raise InputError("global_batch and gradient_accumulation exclude each other: give one of them")
        if self.validation_data and self.validation_share:
            raise InputError("validation_data and validation_share exclude each other: give one of them")
        if self.video_frames is not None and self.video_frames[0] > self.video_frames[1]:
            raise InputError(f"video_frames={list(self.video_frames)}: give the fewest frames, then the most")
        if self.video_frames is not None and (self.video.nframes is not None or self.video.fps is not None):
            raise InputError("video_frames and video's nframes or fps exclude each other: give one of them")
        if self.pvc is not None and self.adapter is not None:
            raise InputError(
                "pvc and adapter exclude each other, because PVC's modules are trained with the model's own weights: "
                "give one of them"
            )
        if self.eval_steps and not self.validates:
            raise InputError(
                f"eval_steps={self.eval_steps} without validation records: give validation_data (--validation-data) "
                "or validation_share (--validation-share)"
            )
        if isinstance(self.resume_from_checkpoint, bool):  # transformers takes a bool here, too
            object.__setattr__(self, "resume", self.resume or self.resume_from_checkpoint)
            object.__setattr__(self, "resume_from_checkpoint", None)
        if self.resume_from_checkpoint is not None:
            object.__setattr__(self, "resume", True)
        if self.resume and self.overwrite:
            raise InputError("resume and overwrite exclude each other: give one of them")

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each part of the model (ppe_npu.training.parts)."""
        own = {"merger": self.merger_learning_rate, "vision": self.vision_learning_rate}
        if self.pvc_learning_rate is not None:
            own["pvc"] = self.pvc_learning_rate
        return {"language": self.learning_rate} | {
            part: self.learning_rate if rate is None else rate for part, rate in own.items()
        }

    @property
    def sampling(self) -> VideoSampling:
        """Which frames of a video are taken, video_frames included."""
        return self.video if self.video_frames is None else Drawn.of(self.video, self.video_frames, self.seed)

    @property
    def all_frozen(self) -> tuple[str, ...]:
        """What does not learn: `frozen`, and the parts whose learning rate is 0."""
        return (*self.frozen, *(part for part, rate in self.learning_rates.items() if rate == 0))

    @property
    def copies_teacher(self) -> bool:
        """Whether the teacher is a frozen copy of the model."""
        return self.distill_weight > 0 and self.distill_teacher == "start"

    @property
    def validates(self) -> bool:
        """Whether there are validation records: their loss is reported, and they are not trained on."""
        return bool(self.validation_data or self.validation_share)

    def accumulation(self, processes: int) -> int:
        """Forwards per optimizer step.

        Raises:
            InputError: global_batch is no multiple of the records that all processes take at once.
        """
        if self.global_batch is None:
            return self.gradient_accumulation
        at_once = self.batch_size * processes
        if self.global_batch % at_once:
            raise InputError(
                f"global_batch={self.global_batch} is not a multiple of {at_once} "
                f"(batch_size {self.batch_size} x {processes} processes): change one of them"
            )
        return self.global_batch // at_once

    def to_dict(self) -> dict[str, Any]:
        """All settings, as values that JSON can hold; TrainConfig(**settings) is the same config."""
        return fields_to_plain(self)

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same when a run is resumed."""
        return {key: value for key, value in self.to_dict().items() if key not in _FREE}


def _deepspeed_file(name: str) -> str:
    """The path of a config file, or of one of the package's own configs, given by name."""
    if os.path.isfile(name):  # unlike Path.is_file, it does not raise for a name that is too long
        return str(name)
    own = resources.files("ppe_npu.deepspeed_configs")
    file = own / f"{name}.json"
    if not os.path.isfile(str(file)):
        names = sorted(path.name.removesuffix(".json") for path in own.iterdir() if path.name.endswith(".json"))
        raise InputError(f"deepspeed={shown(name)} is neither a file nor one of {', '.join(names)}")
    return str(file)


def _as_adapter(value: str | Adapter | None) -> Adapter | None:
    return Adapter(value) if isinstance(value, str) else value


def as_compression(value: str | Path | Mapping[str, Any] | CompressionConfig, **overrides: Any) -> CompressionConfig:
    """A preset's or method's name (with keys: "divprune:ratio=0.25,positions=ppe"), a JSON file, a dict of keys or a
    config -> CompressionConfig, with single keys overridden.

    Overrides that are None change nothing.

    Raises:
        InputError: an unknown preset, or keys that do not fit; the message is one line.
    """
    if isinstance(value, CompressionConfig):
        config = value
    elif isinstance(value, Mapping):
        config = CompressionConfig.from_dict(value)
    elif str(value).endswith(".json"):
        config = CompressionConfig.from_file(value)
    else:
        given = {key: override for key, override in overrides.items() if override is not None}
        return CompressionConfig.from_text(str(value), **given)
    return config.changed(**overrides)
