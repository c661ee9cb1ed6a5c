"""The demo's settings, one dataclass a phase; the field names are TrainConfig's where it has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseRecipe:
    """The dense model that every method is fine-tuned from."""

    images: int = 12_000  # 48 KB each as fp32 patches: about 0.7 GB when they stay in memory
    simple: float = 0.35  # share of scenes with shapes only: without them shapes are learned late, or not at all
    questions: int = 12  # every question of a full scene, packed as independent blocks behind one image
    max_steps: int = 1_600
    batch_size: int = 32
    learning_rate: float = 2.5e-3  # 4e-3 is slower to bind colours to places
    warmup_steps: int = 100
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    # The vision tower stays as drawn. Trained, its features grow (RMS 6.5 after 500 steps) until figures are no cluster
    # centres any more, and they move while the heads try to match them; frozen, their scale is that of build_model.
    frozen: tuple[str, ...] = ("model.visual",)


@dataclass(frozen=True)
class TuneRecipe:
    """The base model, fine-tuned with compression switched on; the same for every method."""

    images: int = 4_000
    simple: float = 0.0
    questions: int = 12
    max_steps: int = 250
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    warmup_steps: int = 25
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    frozen: tuple[str, ...] = ("model.visual",)


BASE = BaseRecipe()
TUNE = TuneRecipe()
RATIOS = (0.45, 0.25)  # 17 and 9 of 36 tokens; .45 is the paper's setting, .25 shows what K > 1 positions are for
K = 4  # divides every section of build_model's rotary embedding
SEEDS = range(5)
GATE = 0.95  # a comparison on a base whose rows and columns are below this says little: flag it
