"""Callbacks that watch a run: its progress, what the compression keeps, and which parameters get a gradient."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from ppe_npu.backends import dispatch
from ppe_npu.errors import TrainingError
from ppe_npu.training.validation import VALIDATION
from ppe_npu.utils.progress import Progress

KEPT = "visual tokens kept"  # the one percentage of a run: a mean over decoder layers
_SHOWN = 3  # parameters that an error message names


class Meter:
    """Counts tokens from the CompressionReports of all forward passes since it was created."""

    def __init__(self) -> None:
        self.tokens = self.visual = 0
        self.kept, self.since = 0.0, time.perf_counter()

    def add(self, report: Any) -> None:
        """Count a forward pass."""
        self.tokens += report.prompt_tokens_before
        self.visual += report.tokens_before
        self.kept += report.retention * report.tokens_before

    @property
    def retention(self) -> float | None:
        """Share of the visual tokens that was kept, averaged over decoder layers; None if there were none."""
        return round(self.kept / self.visual, 4) if self.visual else None

    def speed(self, processes: int) -> float:
        """Prompt tokens before compression per second, over all processes."""
        return round(processes * self.tokens / max(time.perf_counter() - self.since, 1e-9), 1)


class TrainingProgress(TrainerCallback):
    """Shows a bar with loss, tokens/s and share of the visual tokens kept; without a terminal it prints a line per log.

    Args:
        title: the run's name.
        lines: prints a line where there is no terminal.
    """

    def __init__(self, title: str, lines: Callable[[str], None] = print) -> None:
        self.title, self.bar, self.first, self.lines, self.since = title, None, 0, lines, 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.first = state.global_step
        state.compute_steps(args, state.max_steps)  # a resumed run saves and logs by its own settings, not the old ones
        dispatch.reset()
        if state.is_world_process_zero:
            self.since = time.perf_counter()
            self.bar = Progress(state.max_steps, self.title, "step", done=state.global_step, quiet=True)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step >= state.max_steps:  # also log the end of a run that is shorter than logging_steps
            control.should_log = True
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
            if state.global_step == self.first + 1:
                ran = ", ".join(f"{op} {name}" for op, name in dispatch.chosen().items())
                self.bar.write(f"step {state.global_step} ran with: {ran}")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.bar is None or not logs:
            return
        if self.bar.terminal and "loss" in logs:
            kept = {KEPT: f"{logs['retention']:.1%}"} if "retention" in logs else {}
            self.bar.note(loss=logs["loss"], **{"tok/s": f"{logs['tokens_per_second']:,.0f}"}, **kept)
        elif self.bar.terminal and VALIDATION in logs:
            self.bar.write(f"step {state.global_step} of {state.max_steps}: validation loss {logs[VALIDATION]:.4f}")
        elif not self.bar.terminal and {"loss", VALIDATION} & set(logs):
            self.lines(f"step {state.global_step} of {state.max_steps}: {self._log_line(logs, state)}")

    def _log_line(self, logs: Mapping[str, float], state: Any) -> str:
        """The values of a log as a readable line."""
        if "loss" not in logs:
            return f"validation loss {logs[VALIDATION]:.4f}"
        parts = [f"loss {logs['loss']:.4f}"]
        if "learning_rate" in logs:
            parts.append(f"learning rate {logs['learning_rate']:.3g}")
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
        if "retention" in logs:
            parts.append(f"{logs['retention']:.1%} {KEPT}")
        spent, steps = time.perf_counter() - self.since, state.global_step - self.first
        left = spent / max(steps, 1) * (state.max_steps - state.global_step)
        return ", ".join([*parts, f"{left:,.0f} s left"])

    def close(self) -> None:
        """Close the bar, also after a failure, so that whatever is printed next starts on a new line."""
        if self.bar is not None:
            self.bar.close()


class GradientCheck(TrainerCallback):
    """Stops a run after its first step if a parameter that should learn was given no gradient.

    It uses hooks on the parameters, because ZeRO keeps no gradients where torch does. A gradient of zero counts: so is
    an adapter's first one, and the vision tower's in a step without pictures.
    """

    def __init__(self) -> None:
        self.expected: set[str] = set()
        self.seen: set[str] = set()
        self._hooks: list[Any] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.expected.add(name)
                self._hooks.append(parameter.register_hook(lambda _, name=name: self.seen.add(name)))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        without = sorted(self.expected - self.seen)
        if without:
            more = f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
            raise TrainingError(
                f"{len(without)} of {len(self.expected)} trainable parameters received no gradient in the "
                f"first step ({', '.join(without[:_SHOWN])}{more}): freeze them, or fix what detaches them"
            )
