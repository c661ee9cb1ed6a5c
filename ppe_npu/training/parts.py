"""The parts of a vision-language model, each of which may have its own learning rate: language model, merger, vision
tower, and PVC's modules if there are any.

The name of a parameter determines its part, with or without the prefixes that a peft model adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ppe_npu.errors import InputError

PARTS = ("language", "merger", "vision")
ALL_PARTS = (*PARTS, "pvc")  # the last only if a model has PVC's modules
_MERGERS = ("merger", "deepstack_merger_list")  # Qwen3-VL has one more for each level that enters the decoder
_TOWERS = ("visual", "vision_tower")
_PROJECTOR = "multi_modal_projector"  # InternVL's merger, which is no part of its tower
_PVC = ("temporal", "time_norm", "time_embedding")


def part_of(name: str) -> str:
    """The part that a parameter or module of this name belongs to: "language" (embeddings and head included), "merger"
    (which turns the tower's patches into visual tokens), "vision", or "pvc" (ppe_npu.models.pvc)."""
    words = name.split(".")
    if any(word in _PVC for word in words):
        return "pvc"
    if _PROJECTOR in words:
        return "merger"
    if not any(word in _TOWERS for word in words):
        return "language"
    return "merger" if any(word in _MERGERS for word in words) else "vision"


def plain_name(name: str) -> str:
    """The name without what a peft model or a data-parallel wrapper adds to it."""
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".")


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name was added by LoRA or DoRA."""
    return any(word.startswith("lora_") for word in name.split("."))


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Stop parameters from learning.

    Args:
        names: parts, or prefixes of parameter names ("model.visual.blocks.0") as they are without an adapter.

    Raises:
        InputError: a name that is neither, or nothing left to learn.
    """
    parameters = dict(model.named_parameters())
    for asked in names:
        chosen = [name for name in parameters if _matches(asked, name)]
        if not chosen:
            if asked == "pvc":
                raise InputError("frozen='pvc' or pvc_learning_rate=0: this model has no PVC modules; leave it out")
            first = plain_name(next(iter(parameters)))
            raise InputError(
                f"frozen={asked!r} is neither a part ({', '.join(ALL_PARTS)}) nor the start of a parameter's name: "
                f"names start like {first!r}"
            )
        for name in chosen:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"frozen={list(names)} leaves no trainable parameter: freeze less")


def _matches(asked: str, name: str) -> bool:
    return part_of(name) == asked if asked in ALL_PARTS else plain_name(name).startswith(asked)


def parameter_table(model: nn.Module, learning_rates: Mapping[str, float]) -> str:
    """A table with the parameters and the learning rate of each part, which marks the parts that have an adapter.

    Args:
        learning_rates: {part: its learning rate}.
    """
    rows: dict[str, list] = {}
    for name, parameter in model.named_parameters():
        row, count = rows.setdefault(part_of(name), [0, 0, False]), parameter_count(parameter)
        row[0] += count
        row[1] += count if parameter.requires_grad else 0
        row[2] |= is_adapter(name)
    lines = [f"{'parameters':<12}{'all':>16}{'trainable':>16}{'learning rate':>16}"]
    for part in (part for part in ALL_PARTS if part in rows):
        count, trainable, adapted = rows[part]
        rate = f"{_rate(part, learning_rates):.3g}" if trainable else "-"
        lines.append(f"{part:<12}{count:>16,}{trainable:>16,}{rate:>16}{'  (adapter)' if adapted else ''}")
    lines.append(f"{'total':<12}{sum(r[0] for r in rows.values()):>16,}{sum(r[1] for r in rows.values()):>16,}")
    return "\n".join(lines)


def parameter_groups(
    model: nn.Module, learning_rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer takes them: two groups for each part, with and without weight decay.

    Biases and norms do not decay. They are found by the rule of transformers' Trainer, and norms also by their class,
    because that rule uses names and misses Qwen2.5-VL's norm1, norm2 and ln_q. Empty groups are left out: DeepSpeed
    would drop them, and the scheduler would then have more groups than the optimizer.

    Args:
        learning_rates: {part that learns: its learning rate}.

    Returns:
        [{"part", "params", "lr", "weight_decay"}]

    Raises:
        InputError: a part that learns has no learning rate.
    """
    decaying = decaying_names(model)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, decays): [] for part in ALL_PARTS for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[part_of(name), name in decaying].append(parameter)
    return [
        {
            "part": part,
            "params": parameters,
            "lr": _rate(part, learning_rates),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
        if parameters
    ]


def decaying_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay applies to."""
    from transformers import Trainer

    norms = {name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")}
    names = Trainer.get_decay_parameter_names(None, model)  # it does not use self
    return {name for name in names if name.rpartition(".")[0] not in norms}


def parameter_count(parameter: nn.Parameter) -> int:
    """The number of values of a parameter, also if ZeRO-3 has partitioned them or they are packed in 4 bits."""
    if hasattr(parameter, "ds_numel"):
        return parameter.ds_numel
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else packed.shape.numel()


def _rate(part: str, learning_rates: Mapping[str, float]) -> float:
    if part == "pvc" and part not in learning_rates:
        part = "language"
    if part not in learning_rates:
        raise InputError(
            f"learning rates of {', '.join(learning_rates)}, but not of {part}, which learns: give it one, or freeze it"
        )
    return learning_rates[part]
