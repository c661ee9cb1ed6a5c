"""The table before step 1: which parts learn, how fast, on what data, and by which operators."""

from __future__ import annotations

from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.backends import dispatch
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import counted
from ppe_npu.shorthand import step_label
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.parts import parameter_table
from ppe_npu.training.survey import Survey


def describe_run(
    config: TrainConfig,
    model: Any,
    survey: Survey,
    steps: int,
    device: Any,
    processes: int = 1,
    said: str | None = None,
) -> str:
    """The table, as lines of text; `said` is one more line."""
    accumulation = config.accumulation(processes)
    shares = f"{config.batch_size} per forward x {accumulation}"
    shares += f" x {processes} processes" if processes > 1 else ""
    effective = config.batch_size * accumulation * processes
    if config.warmup_steps >= 1:
        length = counted(config.warmup_steps, "warm-up step")
    else:
        length = f"a warm-up of {100 * config.warmup_steps:g} % of them"
    warmup = f" after {length}" if config.warmup_steps else ", without warm-up"
    return "\n".join(
        [
            parameter_table(model, config.learning_rates),
            f"{counted(len(survey.records), 'record')}, {counted(steps, 'step')} of {effective} ({shares}), "
            f"schedule {config.schedule}{warmup}",
            _tokens(config, survey),
            f"{config.dtype} on {devices.describe(device)['name']}; seed {config.seed}{_options(config)}",
            "operators, first choice first: " + "; ".join(_operators(device.type)),
            *([said] if said else []),
        ]
    )


def _tokens(config: TrainConfig, survey: Survey) -> str:
    compression = config.compression
    places = f", positions {compression.positions}, k {compression.k}"
    what = "dense" if compression.is_dense else _compression_text(compression) + places
    before, after = int(survey.before.sum()), int(survey.after.sum())
    seen, left = int(survey.visual_before.sum()), int(survey.visual_after.sum())
    return (
        f"compression {what}; tokens per epoch {before:,}, of which visual {seen:,}; "
        f"entering the LLM {after:,}, of which visual {left:,}"
    )


def _compression_text(compression: CompressionConfig) -> str:
    if compression.steps is None:
        return f"{compression.method}, ratio {compression.ratio}"
    return " then ".join(step_label(method).replace("_", " ") for method in compression.steps)


def _options(config: TrainConfig) -> str:
    """The options that are switched on, each after a comma."""
    named = {
        "gradient checkpointing": config.gradient_checkpointing,
        "packing": config.packing,
        "batches by length": config.group_by_length,
        f"distillation {config.distill_weight:g}": config.distill_weight,
        f"DeepSpeed {config.deepspeed}": config.deepspeed,
    }
    return "".join(f", {name}" for name, on in named.items() if on)


def _operators(kind: str) -> list[str]:
    """One text per op with its implementations that are available for this kind of device, in the order of trial."""
    found = []
    for op in dispatch.ops():
        names = [entry.name for entry in dispatch.available(op, kind) if entry.automatic]
        found.append(f"{op} {' > '.join(names)}")
    return found
