"""Resuming a run: what it must agree with, whether it has ended already, and the messages about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.settings import check_fields, from_mapping, setting
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.checkpoint import BASE
from ppe_npu.training.loop import last_whole_checkpoint, step_of
from ppe_npu.training.output import FINAL, say
from ppe_npu.utils.reading import read_json


@dataclass(frozen=True)
class _Summary:
    """The summary.json of a run that has ended: trainer.TrainResult, as JSON holds it."""

    final: str
    steps: int = setting(least=0)
    losses: tuple[tuple[int, float], ...]
    seconds: float
    parameters: int
    trainable: int
    tokens_per_second: float
    retention: float | None
    skipped: int = setting(least=0)
    peak_memory: int | None
    validation: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


def compared_with(config: TrainConfig, checkpoint: Path | None) -> Path | None:
    """What a resumed run must agree with: its checkpoint, or else the final model of a run that has ended.

    Raises:
        InputError: the run has ended, and its summary.json is damaged.
    """
    final, file = Path(config.output) / FINAL, Path(config.output) / "summary.json"
    ended = config.resume and (final / BASE).is_file() and file.is_file()
    if ended:
        found, names = read_json(file), [field.name for field in fields(_Summary)]
        try:
            from_mapping(_Summary, {name: found[name] for name in names if name in found}, "it")
        except InputError as error:
            raise InputError(f"{file} is damaged ({error}): move it away") from error
    return checkpoint or (final if ended else None)


def finished(config: TrainConfig, checkpoint: Path | None, steps: int) -> dict[str, Any] | None:
    """The contents of summary.json if a run is to be resumed but has ended already; None otherwise.

    Its settings and records must have been compared before (check_identity). In a copy of a run's folder the run has
    not ended, because a copy is made to continue there.
    """
    output = Path(config.output)
    if not config.resume or config.resume_from_checkpoint is not None or not (output / FINAL / BASE).is_file():
        return None
    if not (output / "summary.json").is_file():
        return None
    summary = read_json(output / "summary.json")
    place = Path(summary["final"])
    here = not place.is_absolute() or place.resolve() == (output / FINAL).resolve()
    ended = here and summary["steps"] == steps
    return summary if ended and (checkpoint is None or step_of(checkpoint) <= steps) else None


def say_where_from(config: TrainConfig, checkpoint: Path | None, steps: int, ended: Mapping[str, Any] | None) -> None:
    """Print where a run that was asked to resume continues from."""
    if ended is not None:
        say(f"{config.output} is finished, step {steps} of {steps}: its model is in {FINAL}, nothing is left to do")
    elif checkpoint is not None:
        say(f"resuming from {checkpoint}: step {step_of(checkpoint)} of {steps}")
    elif config.resume:
        say(f"{config.output} contains no checkpoint to resume from: starting with step 1 of {steps}")


def how_to_go_on(config: TrainConfig) -> str:
    """The message that tells how to continue a run that was stopped from the keyboard."""
    last = last_whole_checkpoint(config.output)
    if last is None:
        return "no checkpoint was saved yet (--save-steps N saves one every N steps): the same command starts over"
    return f"the same command with --resume resumes from {last}"
