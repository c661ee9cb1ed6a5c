"""The demo's settings, one dataclass per phase; the field names are TrainConfig's where it has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseRecipe:
    """The dense model that every method is fine-tuned from."""

    images: int = 8_000  # 55 KB each as fp32 patches: about 0.45 GB when they stay in memory
    simple: float = 0.3  # fraction of scenes with shapes only, where colours and places can be learned without clutter
    questions: int = 12  # of a full scene's 12, packed as independent blocks behind one image
    # Small steps on small batches: in the same time, 2.5e-3 on 32 scenes learns columns half as well, 4e-3 not at all.
    max_steps: int = 2_600
    batch_size: int = 16
    learning_rate: float = 1.2e-3
    warmup_steps: int = 100
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)
    logging_steps: int = 100
    # The vision tower keeps its random weights. If it is trained, its features grow (RMS 6.5 after 500 steps) until
    # figures are no longer cluster centres, and they change while attention heads learn to match them. If it is frozen,
    # features keep the scale that build_model sets.
    frozen: tuple[str, ...] = ("model.visual",)


@dataclass(frozen=True)
class TuneRecipe:
    """The base model, fine-tuned with compression switched on; the same for every method."""

    images: int = 4_000
    simple: float = 0.0
    questions: int = 12
    max_steps: int = 640
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 40
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)
    logging_steps: int = 100
    frozen: tuple[str, ...] = ("model.visual",)


@dataclass(frozen=True)
class EvalRecipe:
    """Unseen full scenes; every question is asked alone, through generate."""

    images: int = 256  # 768 questions on shapes, rows and columns each, 512 on bars, 256 on counts
    simple: float = 0.0
    questions: int = 12
    batch_size: int = 128
    max_new_tokens: int = 4  # the restated question, the answer, and the end of the turn


BASE = BaseRecipe()
TUNE = TuneRecipe()
EVAL = EvalRecipe()
RATIOS = (0.45, 0.25)  # 17 and 9 of 36 tokens; .45 is the paper's setting, .25 shows what K > 1 positions are for
K = 4  # divides every section of build_model's rotary embedding
SEEDS = range(5)
GATE = 0.95  # accuracy on rows and columns below which comparisons on a base model say little and are flagged
