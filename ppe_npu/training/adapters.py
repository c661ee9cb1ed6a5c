"""LoRA, DoRA and QLoRA on chosen parts of a model, through peft.

The order is: load_model, base_record (ppe_npu.training.checkpoint), compress, add_adapter. compress() and restore()
take the peft model as well, before or after. LoRA: arXiv 2106.09685; DoRA: arXiv 2402.09353; QLoRA: arXiv 2305.14314.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.loading import load_processor
from ppe_npu.errors import InputError, counted, first_line
from ppe_npu.files import write_json
from ppe_npu.models import base_of, is_compressed
from ppe_npu.settings import check_fields, fields_to_plain, from_mapping, setting
from ppe_npu.training.checkpoint import ADAPTER_WEIGHTS, BASE, COMPRESSION, base_record
from ppe_npu.training.parts import PARTS, is_adapter, part_of
from ppe_npu.utils.optional import optional

KINDS = ("lora", "dora", "qlora")
_PARTS = f"name one or more of {', '.join(PARTS)}"


@dataclass(frozen=True)
class Adapter:
    """What learns in place of the model's own weights.

    Attributes:
        kind: "lora"; "dora", whose directions and lengths learn separately; "qlora": LoRA over a language model that is
            held in 4 bits (CUDA, bitsandbytes).
        rank: the rank of each update. alpha: the update is scaled by alpha / rank. dropout: the probability with which
            an element of its input is dropped in training.
        parts: which parts of the model get an adapter: "language", "merger", "vision".
        targets: suffixes of the names of the modules that get one ("q_proj", "attn.qkv"); None: every linear layer of
            the parts except the head.

    Raises:
        InputError: an impossible value, which the message names in one line.
    """

    kind: str = setting("lora", choices=KINDS)
    rank: int = setting(16, least=1)
    alpha: float = setting(32, above=0)
    dropout: float = setting(0.0, least=0, below=1)
    parts: tuple[str, ...] = setting(("language",), choices=PARTS, single=True, remedy=_PARTS)
    targets: tuple[str, ...] | None = setting(None, single=True)

    def __post_init__(self) -> None:
        check_fields(self, "adapter")
        if not self.parts:
            raise InputError(f"adapter parts=[]: {_PARTS}")
        if self.targets is not None and not all(self.targets or [""]):
            raise InputError("adapter targets name no module: name some, or leave them out for all linear layers")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Adapter:
        """From a config file's keys.

        Raises:
            InputError: an unknown key.
        """
        return from_mapping(cls, values, "adapter")

    def to_dict(self) -> dict[str, Any]:
        """The settings as values that JSON can hold."""
        return fields_to_plain(self)


def check_adapter(adapter: Adapter, device: torch.device) -> None:
    """Raise InputError if this machine cannot train an adapter, before anything is loaded.

    Raises:
        InputError: peft or bitsandbytes is not installed, or 4 bits were asked for on a device that is not CUDA.
    """
    _check_peft(adapter)
    if adapter.kind != "qlora":
        return
    if not devices.trains_4_bits(device):
        raise InputError(f"adapter kind='qlora' needs a CUDA device, this run is on {device.type}: use lora or dora")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("adapter kind='qlora' needs bitsandbytes, which is not installed: pip install bitsandbytes")


def _check_peft(adapter: Adapter) -> None:
    optional("peft", f"adapter kind={adapter.kind!r}", "ppe-npu[train]")


def quantization(adapter: Adapter | None, device: torch.device) -> Any:
    """load_model's quantization_config for an adapter: for QLoRA, NF4 with doubly quantised scales for the language
    model, leaving its head and the vision tower as they are; for the other kinds, None.

    Raises:
        InputError: as check_adapter.
    """
    if adapter is None or adapter.kind != "qlora":
        return None
    check_adapter(adapter, device)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "model.visual", "model.vision_tower"],  # also applies to 4 bits
    )


def target_modules(model: nn.Module, adapter: Adapter) -> list[str]:
    """Full names of the linear layers that get an adapter; layers of the same name in other parts are not among them.

    Raises:
        InputError: a target that names no linear layer of these parts.
    """
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and part_of(name) in adapter.parts
    ]
    if adapter.targets is None:
        return linear
    for target in adapter.targets:
        if not any(_ends(name, target) for name in linear):
            there = sorted({name.rpartition(".")[2] for name in linear})
            raise InputError(
                f"adapter target {target!r} is not a linear layer of {', '.join(adapter.parts)}: "
                f"use some of {', '.join(there)}"
            )
    return [name for name in linear if any(_ends(name, target) for target in adapter.targets)]


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def add_adapter(model: nn.Module, adapter: Adapter) -> nn.Module:
    """Freeze a model and add a new adapter, which does not change its output yet; torch's seed decides the weights.

    Args:
        model: what load_model returns, compressed or not; it is changed in place.

    Returns:
        the peft.PeftModel around it. It passes forward, generate, compression and gradient checkpointing on to the
        model. The adapter's own weights are fp32, also over a bf16 model.

    Raises:
        InputError: peft is not installed, a target does not exist, or the model is in 4 bits and the kind is not qlora,
            or the reverse.
    """
    _check_peft(adapter)
    if (adapter.kind == "qlora") != bool(getattr(model, "quantization_method", None)):
        raise InputError(
            f"adapter kind={adapter.kind!r} does not fit the model: use 'qlora', and only it, on a model loaded by "
            "load_model with quantization(adapter, device)"
        )
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_dora=adapter.kind == "dora",
        target_modules=target_modules(model, adapter),
        bias="none",
    )
    base = _record(model)
    # No task type is set: peft's class for a task would wrap the model's forward, and does not take images.
    wrapped = get_peft_model(model, config)
    wrapped.ppe_base = base
    return wrapped


def _record(model: nn.Module) -> dict[str, str] | None:
    """base_record of a model that was loaded from a path. None for one in 4 bits: its run writes base.json itself."""
    path = getattr(model, "name_or_path", "")
    packed = getattr(model, "quantization_method", None)
    return base_record(model, path) if path and not packed and not hasattr(model, "peft_config") else None


def save_adapter(
    model: nn.Module, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None, processor: Any = None
) -> None:
    """Write all that `ppe-npu merge-lora`, `describe` and `eval` need of an adapter: write_adapter's two files,
    base.json, compression.json where the model is compressed, and the processor.

    Args:
        model: what add_adapter returns.
        state_dict: as in write_adapter.
        processor: the model's; None: the one beside the base model, if there is one.

    Raises:
        InputError: no processor was given, and the base's cannot be read.
    """
    base = getattr(model, "ppe_base", None)
    if processor is None and base is not None and _has_processor(base["model"]):
        processor = load_processor(base["model"])
    write_adapter(model, folder, state_dict)
    if base is not None:
        write_json(Path(folder) / BASE, base)
    if is_compressed(model):
        write_json(Path(folder) / COMPRESSION, base_of(model).compression.config.to_dict())
    if processor is not None:
        processor.save_pretrained(str(folder))


def _has_processor(model: str) -> bool:
    """Whether there is a processor beside a model; assumed for an id on the hub."""
    return not Path(model).is_dir() or (Path(model) / "tokenizer_config.json").is_file()


def write_adapter(model: nn.Module, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json, as plain peft reads them.

    Args:
        state_dict: the weights to write, where this process does not hold all of them; None: the model's own.
    """
    # By default peft checks on the hub whether the base's vocabulary was changed, which this package never does.
    model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)


def adapter_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder's adapter_model.safetensors, by name.

    Raises:
        InputError: the file does not exist, is empty, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(folder) / ADAPTER_WEIGHTS
    try:
        tensors = load_file(file) if file.is_file() else {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged ({first_line(error)}): use another checkpoint") from error
    if not tensors:
        raise InputError(f"adapter {folder} contains no weights ({ADAPTER_WEIGHTS}): use another checkpoint")
    return tensors


def set_adapter_weights(model: nn.Module, tensors: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load weights into a model's adapter, in place.

    If weights are missing, peft itself only warns, and continues with new ones.

    Args:
        model: a peft model with an adapter that has these weights.
        tensors: what adapter_weights returns.
        source: where they are from, for messages.

    Raises:
        InputError: more weights than the adapter has, fewer, or of other shapes.
    """
    from peft import set_peft_model_state_dict

    try:
        result = set_peft_model_state_dict(model, tensors)
    except (RuntimeError, KeyError) as error:
        raise InputError(f"adapter {source} does not fit ({first_line(error)}): use another checkpoint") from error
    wrong = [name for name in result.missing_keys if is_adapter(name)] + list(result.unexpected_keys)
    if wrong:
        unfit = f"{counted(len(wrong), 'weight')} ({wrong[0]}{', ...' * (len(wrong) > 1)})"
        raise InputError(f"adapter {source} does not fit in {unfit}: use another checkpoint")
