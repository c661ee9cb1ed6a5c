"""A run's checkpoint -> one that plain transformers loads: adapters are merged, and DeepSpeed's shards are joined."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ppe_npu.checkpoints.compressed import note_compression
from ppe_npu.checkpoints.loading import DTYPES, check_checkpoint, load_model
from ppe_npu.checkpoints.trust import NO_CODE, check_no_code, tensors_only
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError, first_line
from ppe_npu.files import check_writable, new_folder, write_json
from ppe_npu.models.fingerprint import fingerprint
from ppe_npu.training.adapters import adapter_weights, set_adapter_weights
from ppe_npu.training.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE, COMPRESSION, WHOLE, read_base
from ppe_npu.training.whole import check_whole
from ppe_npu.utils.optional import optional
from ppe_npu.utils.paths import as_path
from ppe_npu.utils.reading import read_json

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PROCESSOR = (
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "chat_template.*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)
# Prefixes of files that only training needs. DeepSpeed's shards are needed, too, where nothing else holds the weights.
_TRAINING = ("optimizer.", "scheduler.", "scaler.", "rng_state", "trainer_state.", "training_args.")
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def merge_lora(
    adapter: str | Path,
    output: str | Path,
    model: str | Path | None = None,
    dtype: str | None = None,
    allow_bin: bool = False,
) -> Path:
    """Add a LoRA or DoRA adapter to the model that it was trained on, and save the sum as a plain checkpoint.

    Args:
        adapter: a folder that `train` wrote: final/, or a complete checkpoint.
        output: a new or empty folder. The model, the processor, compression.json and base.json are written there.
        model: the base; None: the one that base.json names.
        dtype: "fp32" or "bf16" to save in; None: the base's dtype in training.
        allow_bin: whether the base may have pytorch_model.bin alone.

    Returns:
        output.

    Raises:
        InputError: the adapter is incomplete, the base is not the model that it was trained on, or the output is not
            empty.
    """
    return _export(Path(adapter), Path(output), model, dtype, adapter=True, allow_bin=allow_bin)


def export(
    checkpoint: str | Path,
    output: str | Path,
    model: str | Path | None = None,
    dtype: str | None = None,
    allow_bin: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write any checkpoint of a run as a plain one: weights and processor without the optimizer's state.

    Full weights are copied, an adapter is merged, and the shards of ZeRO-2 or ZeRO-3 are joined (fp32).

    Args:
        checkpoint: final/ or checkpoint-N.
        output: a new or empty folder.
        model: the base of an adapter; None: the one that base.json names.
        dtype: "fp32" or "bf16" to save in; None: the saved one, or for an adapter its base's in training.
        allow_bin: whether the checkpoint, or an adapter's base, may have pytorch_model.bin alone.
        config: keys to add to config.json, or to replace in it (ppe_npu.serving.checkpoint).

    Returns:
        output.

    Raises:
        InputError: as merge_lora; a checkpoint that was cut off.
    """
    return _export(Path(checkpoint), Path(output), model, dtype, adapter=False, allow_bin=allow_bin, config=config)


def _export(
    source: Path,
    output: Path,
    base: str | Path | None,
    dtype: str | None,
    adapter: bool,
    allow_bin: bool,
    config: Mapping[str, Any] | None = None,
) -> Path:
    adapter = adapter or (source / ADAPTER_CONFIG).is_file()
    _check_source(source, adapter)
    _check_output(output)
    if base is not None and not adapter:
        raise InputError(f"{source} contains a whole model: leave out --model, which names the base of an adapter")
    model = merged(source, base, allow_bin) if adapter else _full(source, allow_bin)
    if dtype is not None:
        model = model.to(DTYPES[dtype])
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        for pattern in (*_PROCESSOR, COMPRESSION, BASE):
            for file in source.glob(pattern):
                shutil.copy2(file, folder / file.name)
        if (folder / COMPRESSION).is_file():
            note_compression(folder, CompressionConfig.from_file(folder / COMPRESSION))
        if config is not None:
            write_json(folder / "config.json", {**read_json(folder / "config.json"), **config})
    return output


def _check_source(source: Path, adapter: bool) -> None:
    """Raise InputError unless the folder is whole and of the kind that was asked for."""
    if not source.is_dir():
        raise InputError(f"{source} does not exist: name a folder that `ppe-npu train` wrote")
    training = source.name.startswith("checkpoint-") or (source / "trainer_state.json").exists()
    if training and not (source / WHOLE).is_file():
        raise InputError(f"{source} was not saved completely (no {WHOLE}): use an earlier checkpoint")
    if training:
        _check_files(source)
    check_no_code(source)
    config = ADAPTER_CONFIG if adapter else "config.json"
    if not (source / config).is_file():
        remedy = "export it, it needs no merging" if adapter and (source / "config.json").is_file() else "name another"
        raise InputError(f"{source} contains no {config}: {remedy}")
    if not (source / "tokenizer_config.json").is_file():
        raise InputError(f"{source} contains no processor (tokenizer_config.json): save the base's processor there")


def _check_files(source: Path) -> None:
    """Raise InputError unless the files of a training checkpoint that are exported are as they were written."""
    plain = (source / ADAPTER_WEIGHTS).is_file() or any((source / name).is_file() for name in _WEIGHTS)
    try:
        check_whole(source, lambda name: not name.startswith(_TRAINING + (("global_step",) if plain else ())))
    except InputError as error:
        raise InputError(f"{error}; use another checkpoint") from error


def _check_output(output: Path) -> None:
    if output.is_file():
        raise InputError(f"output {output} is a file: name a folder")
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"output {output} is not empty: name a new folder")
    check_writable(output)


# -- full weights ------------------------------------------------------------------------------------------------------


def _full(source: Path, allow_bin: bool) -> Any:
    """The model of a checkpoint that has all weights, in plain files or in DeepSpeed's shards."""
    if any((source / name).is_file() for name in _WEIGHTS) or not _shared(source):
        return load_model(source, dtype="auto", allow_bin=allow_bin, tiled=True)
    import transformers

    model = _without_weights(source)
    try:
        model.load_state_dict(_consolidated(source), assign=True)
    except RuntimeError as error:
        raise InputError(f"{source} does not fit its shards ({first_line(error)}): use another checkpoint") from error
    if (source / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(source)
    return model


def _without_weights(path: str | Path) -> Any:
    """The model of a checkpoint on the meta device: its parameters have shapes but no values."""
    import transformers

    from ppe_npu.models.pvc.install import model_class

    config = transformers.AutoConfig.from_pretrained(path, **NO_CODE)
    config._attn_implementation = "sdpa"  # else the config could name a kernel, which would be downloaded
    with torch.device("meta"):
        return model_class(config.architectures[0])(config)


def _shared(source: Path) -> bool:
    return any(path.is_dir() for path in source.glob("global_step*"))


def _consolidated(source: Path) -> dict[str, torch.Tensor]:
    """All weights of a ZeRO-2 or ZeRO-3 checkpoint, fp32, on the CPU."""
    zero = optional("deepspeed.utils.zero_to_fp32", f"checkpoint {source}", "ppe-npu[train]")
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        with tensors_only(zero, DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address):
            return zero.get_fp32_state_dict_from_zero_checkpoint(str(source))
    except Exception as error:  # damaged files make DeepSpeed raise EOFError, AssertionError, ...
        raise InputError(f"{source}: its shards cannot be joined ({first_line(error)}): use another one") from error


# -- adapters ----------------------------------------------------------------------------------------------------------


def merged(source: Path, base: str | Path | None, allow_bin: bool) -> Any:
    """The base model of an adapter, with the adapter added to its weights."""
    peft = optional("peft", "merging an adapter", "ppe-npu[train]")
    record = read_base(source)
    path = base_path(source, record, base, allow_bin)
    tensors = adapter_weights(source)
    _check_shapes(source, tensors, path)
    model = load_model(path, dtype=getattr(torch, record["dtype"]), allow_bin=allow_bin, tiled=True)
    found = fingerprint(model)
    if found != record["weights"]:
        raise InputError(
            f"adapter {source} was trained on {record['model']} (weights {record['weights']}), but {path} has other "
            f"weights ({found}): name the one it was trained on with --model"
        )
    try:
        config = peft.PeftConfig.from_pretrained(str(source))
        config.base_model_name_or_path = None  # peft would warn of one that has moved: its weights are compared above
        wrapped = peft.get_peft_model(model, config)
    except Exception as error:  # a wrong field may make peft raise anything, such as re.error
        raise InputError(f"{source / ADAPTER_CONFIG} cannot be used ({first_line(error)}): use another one") from error
    set_adapter_weights(wrapped, tensors, source)
    try:
        return wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:  # safe_merge raises ValueError for NaN; peft's variants may raise anything
        raise InputError(f"adapter {source} cannot be merged ({first_line(error)}): use another checkpoint") from error


def base_path(
    source: Path, record: Mapping[str, str], base: str | Path | None, allow_bin: bool, tiled: bool = True
) -> str:
    """The path or id of an adapter's base, after checking its class."""
    path = as_path(str(base or record["model"]), f"adapter {source}: its base ")
    if base is None and Path(path).is_absolute() and not Path(path).is_dir():
        raise InputError(f"adapter {source} was trained on {path}, which no longer exists: name its base with --model")
    try:
        found = check_checkpoint(path, allow_bin, tiled)
    except InputError as error:
        if base is not None:
            raise
        raise InputError(f"adapter {source}, its base according to {BASE}: {error}") from error
    if found != record["class"]:
        raise InputError(
            f"adapter {source} was trained on {record['model']}, a {record['class']}, but {path} is a {found}: "
            "name the one it was trained on with --model"
        )
    return path


def _check_shapes(source: Path, tensors: Mapping[str, torch.Tensor], path: str) -> None:
    """Raise InputError unless the base has the layers that the adapter was trained for; reads no weights."""
    layers = {
        name: module for name, module in _without_weights(path).named_modules() if isinstance(module, torch.nn.Linear)
    }
    for name, value in tensors.items():
        factor = _FACTOR.fullmatch(name)
        if factor is None:
            continue
        layer, side = factor.group(1), 1 if factor.group(2) == "A" else 0
        has = None if layer not in layers else layers[layer].weight.shape[side]
        if has != value.shape[side]:
            there = "has no such layer" if has is None else f"has {has}"
            raise InputError(
                f"adapter {source} was trained for {value.shape[side]} channels at {layer}, but {path} {there}: "
                "name the model it was trained on with --model"
            )
