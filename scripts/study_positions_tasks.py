"""The tasks of study_positions.py: their data, their dense models, and how their tokens are grouped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from ppe_npu.demo import motion, pipeline, running
from ppe_npu.methods.base import Method
from ppe_npu.methods.dpc_knn import DPCKNN
from ppe_npu.methods.events import Events


class Task:
    """The parts of a study that depend on its task. `folder` in the methods is the folder of all of a task's files.

    Class attributes:
        name: the benchmark's, and the value of --task. folder: name within the study's folder.
        tune: the split for fine-tuning.
        images: default number of pictures or clips to ask about. base_steps: default steps of the dense model.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    tune: ClassVar[str]
    images: ClassVar[int]
    base_steps: ClassVar[int]

    def draw(self, folder: Path) -> None:
        """Draw the data that do not exist yet."""
        raise NotImplementedError

    def train(self, folder: Path, seed: int, steps: int) -> None:
        """Train one seed's dense model, folder/seedN/base/final, if it does not exist yet."""
        raise NotImplementedError

    def step(self, method: type[DPCKNN], share: float) -> Method:
        """The step that keeps this share of the tokens with a clustering method."""
        raise NotImplementedError


class Layout(Task):
    """Figures on pictures of 36 tokens (docs/demo.md); the tokens of each picture are grouped."""

    name, folder, tune, images, base_steps = "layout", "", "tune", 24, 900

    def draw(self, folder: Path) -> None:
        pipeline._make_data(folder / "data")

    def train(self, folder: Path, seed: int, steps: int) -> None:
        pipeline.BASE = dataclasses.replace(pipeline.BASE, max_steps=steps)
        pipeline._train_base((str(folder), seed, "cpu", 1))

    def step(self, method: type[DPCKNN], share: float) -> Method:
        return method(ratio=share)


class Motion(Task):
    """Clips of eight frames with one token each (docs/pvc.md), which are grouped into events. The dense model has PVC's
    modules, because the task is hardly learned without them."""

    name, folder, tune, images, base_steps = "motion", "motion", "train", 96, motion.RECIPE.max_steps

    def draw(self, folder: Path) -> None:
        motion.make_data(folder / "data", motion.SMALL)

    def train(self, folder: Path, seed: int, steps: int) -> None:
        root, recipe = folder / f"seed{seed}", dataclasses.replace(motion.RECIPE, max_steps=steps)
        start, data = root / motion.SMALL.name, folder / "data" / "train.jsonl"
        if not (start / "config.json").is_file():
            motion.build(start, seed, motion.SMALL)
        running.train_once(recipe, start, data, root / "base", "dense", seed, "cpu", **motion.PVC)

    def step(self, method: type[DPCKNN], share: float) -> Method:
        return Events(ratio=share, by=method())


TASKS: dict[str, Task] = {task.name: task for task in (Layout(), Motion())}


def tuned(task: Task, folder: Path, seed: int, to: str, config, steps: int, distill: float) -> Path:
    """Fine-tune one seed's dense model with a compression, on labels or on the dense model; returns the weights file.

    Args:
        to: the name of the new model's folder. distill: the weight of self-distillation in the loss.
    """
    own = folder / f"seed{seed}"
    more = {"distill_weight": distill, "distill_teacher": "start"} if distill else {}
    recipe = dataclasses.replace(pipeline.TUNE, max_steps=steps)
    start, data = own / "base" / "final", folder / "data" / f"{task.tune}.jsonl"
    running.train_once(recipe, start, data, own / to, config, seed, "cpu", **more)
    return own / to / "final" / "model.safetensors"
