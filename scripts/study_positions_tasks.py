"""The tasks on which study_positions.py asks rules of positions: what is drawn, trained, and grouped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from ppe_npu.demo import motion, pipeline
from ppe_npu.methods.base import Method
from ppe_npu.methods.dpc_knn import DPCKNN
from ppe_npu.methods.events import Events


class Task:
    """What a study hangs on; the methods are given the folder that all of a task's files lie in.

    Class attributes:
        name: of the benchmark, and of --task. folder: below the study's. tune: the split for fine-tuning.
        images: pictures or clips that are asked about. base_steps: of the dense model.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    tune: ClassVar[str]
    images: ClassVar[int]
    base_steps: ClassVar[int]

    def draw(self, folder: Path) -> None:
        """The data, where they are not there."""
        raise NotImplementedError

    def train(self, folder: Path, seed: int, steps: int) -> None:
        """One seed's dense model, folder/seedN/base/final, where it is not there."""
        raise NotImplementedError

    def step(self, method: type[DPCKNN], share: float) -> Method:
        """What keeps this share of the tokens, by a clustering."""
        raise NotImplementedError


class Layout(Task):
    """Figures on a picture of 36 tokens (docs/demo.md), which are grouped by themselves."""

    name, folder, tune, images, base_steps = "layout", "", "tune", 24, 900

    def draw(self, folder: Path) -> None:
        pipeline._make_data(folder / "data")

    def train(self, folder: Path, seed: int, steps: int) -> None:
        pipeline.BASE = dataclasses.replace(pipeline.BASE, max_steps=steps)
        pipeline._train_base((str(folder), seed, "cpu", 1))

    def step(self, method: type[DPCKNN], share: float) -> Method:
        return method(ratio=share)


class Motion(Task):
    """Clips of eight frames of one token (docs/pvc.md), which are grouped to events; the dense model has PVC's modules,
    because without them the task is hardly learned."""

    name, folder, tune, images, base_steps = "motion", "motion", "train", 96, motion.RECIPE.max_steps

    def draw(self, folder: Path) -> None:
        motion.make_data(folder / "data", motion.SMALL)

    def train(self, folder: Path, seed: int, steps: int) -> None:
        root, recipe = folder / f"seed{seed}", dataclasses.replace(motion.RECIPE, max_steps=steps)
        start, data = root / motion.SMALL.name, folder / "data" / "train.jsonl"
        if not (start / "config.json").is_file():
            motion.build(start, seed, motion.SMALL)
        pipeline.train_once(recipe, start, data, root / "base", "dense", seed, "cpu", **motion.PVC)

    def step(self, method: type[DPCKNN], share: float) -> Method:
        return Events(ratio=share, by=method())


TASKS: dict[str, Task] = {task.name: task for task in (Layout(), Motion())}


def tuned(task: Task, folder: Path, seed: int, to: str, config, steps: int, distill: float) -> Path:
    """The weights of one seed's model, fine-tuned with a compression, by the labels or by the dense model.

    Args:
        to: the name of its folder. distill: the weight of the dense model's answers.
    """
    own = folder / f"seed{seed}"
    more = {"distill_weight": distill, "distill_teacher": "start"} if distill else {}
    recipe = dataclasses.replace(pipeline.TUNE, max_steps=steps)
    start, data = own / "base" / "final", folder / "data" / f"{task.tune}.jsonl"
    pipeline.train_once(recipe, start, data, own / to, config, seed, "cpu", **more)
    return own / to / "final" / "model.safetensors"
