"""The files of a saved folder besides the weights, and the record of the base model that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ppe_npu.backends.common import DTYPES
from ppe_npu.checkpoints.loading import load_model
from ppe_npu.errors import InputError
from ppe_npu.models.fingerprint import fingerprint
from ppe_npu.utils.reading import json_or_none

WHOLE = "whole.json"  # the last file of a training checkpoint: one without it was cut off
BASE = "base.json"  # base_record()
SETTINGS = "train.json"  # the settings of a run, which may serve as a recipe
IDENTITY = "identity.json"  # all that decides the losses of the run that wrote it
COMPRESSION = "compression.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEYS = ("model", "weights", "class", "dtype")
_LONGEST = 4097  # characters: more than any path has
_DTYPES = [str(dtype).removeprefix("torch.") for dtype in DTYPES.values()]


def began(output: Path) -> bool:
    """Whether a run has begun in a folder: it writes its settings before any file that may be dropped later."""
    return any((output / name).is_file() for name in (SETTINGS, IDENTITY))


def base_record(model: nn.Module, path: str | Path, allow_bin: bool = False) -> dict[str, str]:
    """The contents of base.json: which model a run started from, identified by its weights.

    Call it after load_model and before an adapter is attached; under ZeRO-3 in every process.

    Args:
        path: where the model was loaded from, a folder or a hub id.
        allow_bin: as passed to load_model.

    Returns:
        {"model" (a folder's full path, or the id), "weights" (their fingerprint), "class", "dtype" (in which it was
        loaded), "transformers", "ppe_npu" (versions)}.

    Raises:
        ValueError: an adapter is attached already.
    """
    import transformers

    from ppe_npu import __version__

    if hasattr(model, "peft_config"):
        raise ValueError("an adapter is attached already: record the base's weights before that")
    folder = Path(path).expanduser()
    # Weights in 4 bits cannot be compared on another machine, so the weights that they were made from are read again.
    packed = getattr(model, "quantization_method", None)
    whole = load_model(path, "cpu", model.dtype, allow_bin=allow_bin, tiled=True) if packed else model
    return {
        "model": str(folder.resolve()) if folder.is_dir() else str(path),
        "weights": fingerprint(whole),
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "transformers": transformers.__version__,
        "ppe_npu": __version__,
    }


def read_base(folder: str | Path) -> dict[str, Any]:
    """The contents of a folder's base.json.

    Raises:
        InputError: the file does not exist, or does not hold what base_record returns.
    """
    file = Path(folder) / BASE
    if not file.is_file():
        raise InputError(
            f"{folder} contains no {BASE}, which names its base model: use a folder that `ppe-npu train` wrote"
        )
    record = json_or_none(file)
    named = [record.get(key) for key in _KEYS] if isinstance(record, dict) else [None]
    whole = all(isinstance(value, str) and len(value) < _LONGEST for value in named)
    if not whole or record["dtype"] not in _DTYPES:
        raise InputError(f"{file} is damaged: it must name {', '.join(_KEYS)}; use another checkpoint")
    return record
