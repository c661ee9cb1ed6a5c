"""Checkpoints that store their compression, in compression.json beside the weights and in their config.json.

model = ppe_npu.from_pretrained("runs/x/final")                                  # compressed as it was trained
model = AutoModelForImageTextToText.from_pretrained("runs/x/final")              # dense: transformers ignores it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ppe_npu.checkpoints.loading import load_model
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.files import write_json
from ppe_npu.models import compress
from ppe_npu.utils.reading import read_json

FILE, KEY = "compression.json", "compression_config"


def from_pretrained(
    path: str | Path,
    compression: CompressionConfig | Mapping[str, Any] | str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "auto",
    attn_implementation: str = "sdpa",
    allow_bin: bool = False,
) -> Any:
    """A model in eval mode, with the compression that its checkpoint stores.

    Args:
        path: a checkpoint's folder, or a model's id on the Hugging Face hub.
        compression: replaces the checkpoint's: a config, a dict of its keys, or the name of a preset or method.
        device, attn_implementation, allow_bin: as in ppe_npu.checkpoints.loading.load_model.
        dtype: "auto" (as it was saved), "fp32", "bf16" or a torch dtype.

    Raises:
        InputError: as in load_model; or the checkpoint stores no compression, and none is given.
    """
    if isinstance(compression, Mapping):
        compression = CompressionConfig.from_dict(compression)
    elif isinstance(compression, str):
        compression = CompressionConfig.from_text(compression)
    own = Path(path).expanduser() / FILE
    if compression is None and own.is_file():
        compression = CompressionConfig.from_file(own)
    model = load_model(path, device, dtype, attn_implementation, allow_bin=allow_bin)
    if compression is None:
        said = getattr(model.config, KEY, None)
        if said is None:
            raise InputError(f"model {path} states no compression ({FILE}): give one, such as compression='ppe'")
        compression = CompressionConfig.from_dict(said)
    return compress(model, compression)


def note_compression(folder: str | Path, config: CompressionConfig) -> None:
    """Write compression.json into a checkpoint's folder, and the same into its config.json if there is one."""
    folder, said = Path(folder), config.to_dict()
    write_json(folder / FILE, said)
    if (folder / "config.json").is_file():
        write_json(folder / "config.json", {**read_json(folder / "config.json"), KEY: said})
