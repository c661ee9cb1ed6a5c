"""Checkpoints for vLLM, whose config.json names the plug-in's architecture and the compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppe_npu.checkpoints.loading import check_checkpoint, check_compression
from ppe_npu.checkpoints.trust import NO_CODE
from ppe_npu.config import CompressionConfig
from ppe_npu.engine.items import check_items
from ppe_npu.errors import InputError, shown
from ppe_npu.models import compression_for
from ppe_npu.serving.settings import AXES, KEY, compression_config
from ppe_npu.serving.vllm import PREFIX, architectures
from ppe_npu.utils.reading import json_or_none


def marks(path: str | Path, config: CompressionConfig, allow_bin: bool = False) -> dict[str, Any]:
    """The keys that config.json, or vLLM's --hf-overrides, needs for a model to be served with this compression.

    Args:
        path: the checkpoint's folder, or an id on the hub. No weights are read.
        allow_bin: as in load_model.

    Raises:
        InputError: no checkpoint, a class that the plug-in does not serve, or a compression that the plug-in or the
            model does not support.
    """
    from transformers import AutoConfig

    architecture = check_checkpoint(path, allow_bin, tiled=True)
    name = PREFIX + architecture
    if name not in architectures():
        served = ", ".join(known.removeprefix(PREFIX) for known in architectures())
        raise InputError(f"{architecture} is not served by vLLM with compression, only {served}")
    (config,) = check_compression(path, config, allow_bin=allow_bin, tiled=True)
    model_config = AutoConfig.from_pretrained(str(path), **NO_CODE)
    compression = compression_for(architecture, model_config, config)
    check_items(compression)
    plain = {AXES: [len(compression.channels), 0, 0]} if compression.axes == 1 else {}
    return {"architectures": [name], KEY: config.to_dict(), **plain}


def is_marked(path: str | Path) -> bool:
    """Whether a folder's config.json has the keys that marks() gives.

    Raises:
        InputError: its compression is invalid, or its architecture is not one of the plug-in's.
    """
    file = Path(path) / "config.json"
    found = json_or_none(file)
    if not isinstance(found, dict) or KEY not in found:
        return False
    try:
        compression_config(found[KEY])
    except InputError as error:
        raise InputError(f"{file}: {KEY}: {error}") from error
    if found.get("architectures") not in [[name] for name in architectures()]:
        asked = shown(found.get("architectures"))
        raise InputError(f"{file}: architectures={asked} is no class that serves {KEY}: export it again")
    return True
