"""TrainConfig: everything that decides a training run, checked when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.loading import DTYPES
from ppe_npu.media import VideoSampling

SCHEDULES = ("constant", "linear", "cosine", "stable_decay")
# May differ between a run and its resumption: none of them changes a loss.
_FREE = ("output", "resume", "overwrite", "logging_steps", "save_steps", "num_workers", "cache_pixels")


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run.

    Attributes:
        model: checkpoint folder or hub id to start from.
        data: .json or .jsonl file(s) of LLaVA-style records; several are joined, and shuffled together.
        data_root: what the records' relative paths start from; None: each file's own folder.
        output: folder for checkpoints, summary.json and final/.
        compression: a preset's name, the path of a JSON file, a dict of its keys, or a CompressionConfig.
        device: auto, cpu, cuda or npu.
        dtype: fp32, or bf16: autocast over fp32 weights.
        epochs: passes over the data; ignored when max_steps is given.
        max_steps: optimizer steps.
        batch_size: records per forward; gradient_accumulation: forwards per optimizer step.
        learning_rate, betas, weight_decay, max_grad_norm: of AdamW.
        warmup_steps: linear, from 0.
        schedule: after the warm-up: "constant"; "linear" or "cosine" down to 0; or "stable_decay", constant and then,
            over the last decay_fraction of the steps, linearly to 0.
        seed: of the data order and of everything random.
        save_steps: a checkpoint every so many steps; 0: only the final one.
        logging_steps: the loss is noted every so many steps.
        frozen: beginnings of parameter names that do not learn, "model.visual" for the whole vision tower.
        gradient_checkpointing: recompute activations to save memory.
        fused_adamw: torch's fused AdamW. Refused on an NPU: see docs/npu.md.
        deepspeed: DeepSpeed's JSON file (scripts/deepspeed holds some), for runs started by torchrun or deepspeed;
            None: plain data parallelism, where several processes were started.
        resume: go on from the last whole checkpoint in output, if there is one.
        overwrite: drop what an earlier run left in output.
        num_workers: processes that prepare batches; 0: this one.
        cache_pixels: keep processed pictures in memory (up to 2 GiB), for small data over many epochs.
        min_pixels, max_pixels: bounds on an image's size; None: the checkpoint's.
        video: which frames of a video, and how large.

    Raises:
        InputError: a value that cannot be, named, in one line.
    """

    model: str
    data: str | tuple[str, ...]
    output: str
    data_root: str | None = None
    compression: str | Mapping[str, Any] | CompressionConfig = "ppe"
    device: str = "auto"
    dtype: str = "fp32"
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 1
    gradient_accumulation: int = 1
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    schedule: str = "cosine"
    decay_fraction: float = 0.5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    seed: int = 0
    save_steps: int = 0
    logging_steps: int = 10
    frozen: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    fused_adamw: bool = False
    deepspeed: str | None = None
    resume: bool = False
    overwrite: bool = False
    num_workers: int = 0
    cache_pixels: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    video: VideoSampling = dataclasses.field(default_factory=VideoSampling)

    def __post_init__(self) -> None:
        data = (self.data,) if isinstance(self.data, (str, Path)) else tuple(self.data)
        object.__setattr__(self, "data", tuple(str(file) for file in data))
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "frozen", (self.frozen,) if isinstance(self.frozen, str) else tuple(self.frozen))
        object.__setattr__(self, "compression", as_compression(self.compression))
        if not self.data or not all(self.data) or not self.model or not self.output:
            raise InputError("training needs a model, data and an output folder: one of them is empty")
        for name, choices in (("dtype", tuple(DTYPES)), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r}: use one of {', '.join(choices)}")
        for name in ("epochs", "batch_size", "gradient_accumulation", "learning_rate", "logging_steps", "max_steps"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "seed", "save_steps", "num_workers"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)} must be 0 or more")
        if not 0 < self.decay_fraction <= 1:
            raise InputError(f"decay_fraction={self.decay_fraction} must be in (0, 1]")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas={self.betas} must be two numbers in [0, 1)")
        if self.deepspeed is not None and not Path(self.deepspeed).is_file():
            raise InputError(f"deepspeed={self.deepspeed!r} is no file: scripts/deepspeed holds zero2.json and others")
        if self.resume and self.overwrite:
            raise InputError("resume and overwrite exclude each other: go on with the run, or drop it")

    def to_dict(self) -> dict[str, Any]:
        """All settings, as JSON takes them."""
        values = dataclasses.asdict(dataclasses.replace(self, compression="dense"))
        lists = {name: list(getattr(self, name)) for name in ("data", "betas", "frozen")}
        return values | lists | {"compression": self.compression.to_dict()}

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same when a run is resumed."""
        return {key: value for key, value in self.to_dict().items() if key not in _FREE}


def as_compression(value: str | Path | Mapping[str, Any] | CompressionConfig, **overrides: Any) -> CompressionConfig:
    """A preset's name, a JSON file, a dict of keys or a config -> CompressionConfig, with single keys overridden.

    Overrides that are None change nothing.

    Raises:
        ValueError: an unknown preset, or keys that do not fit (one line).
    """
    if isinstance(value, CompressionConfig):
        config = value
    elif isinstance(value, Mapping):
        config = CompressionConfig.from_dict(value)
    elif str(value).endswith(".json"):
        config = CompressionConfig.from_file(value)
    else:
        config = CompressionConfig.preset(str(value))
    changed = {key: override for key, override in overrides.items() if override is not None}
    return CompressionConfig.from_dict({**config.to_dict(), **changed}) if changed else config
