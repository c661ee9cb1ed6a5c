"""Refuses what a checkpoint's files may not ask for: running their own code, opening pickles, files in other folders.

docs/security.md describes what is trusted and what is not.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line
from ppe_npu.files import check_regular
from ppe_npu.utils.escape import brief, printable
from ppe_npu.utils.paths import LFS_POINTER, may_be_read

NO_CODE = {"trust_remote_code": False}  # for every from_pretrained; without it transformers may ask on the terminal
_CODE = ("auto_map", "megatron_config")  # transformers' key for files in the folder; peft's key for a module's name
_READ = (".json", ".jinja", ".safetensors", ".bin", ".txt", ".model")
SAFE, _SAFE_INDEX = "*.safetensors", "*.safetensors.index.json"
_SINGLE = ("model.safetensors", "pytorch_model.bin")  # the names that transformers reads for unsharded weights
_POINTER = 1024  # bytes; a Git LFS pointer has fewer
PICKLED, _PICKLED_INDEX = "pytorch_model*.bin", "pytorch_model*.bin.index.json"


def check_no_code(folder: str | Path) -> None:
    """Raise InputError for a folder in which any config names Python modules to import, or in which a pipe or a device
    has the name of a checkpoint's file, which transformers would read forever."""
    try:
        files = list(Path(folder).iterdir()) if Path(folder).is_dir() else []
    except OSError as error:
        raise InputError(
            f"model folder {printable(folder)} cannot be listed ({error.strerror}): change its permissions"
        ) from error
    for file in files:
        if file.suffix in _READ and not file.is_dir():
            check_regular(file)
    for file in sorted(Path(folder).glob("*config.json")):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # reported by the code that needs the file
            continue
        key = _names_code(config)
        if key is not None:
            raise InputError(
                f"model folder {printable(folder)} needs code of its own ({key} in {file.name}), but this package "
                "runs no code of a checkpoint: use one whose classes are part of transformers"
            )


def refused_code(path: str | Path, error: BaseException) -> InputError | None:
    """The InputError for an error by which transformers refuses a checkpoint's code; None for any other error."""
    if "trust_remote_code" not in str(error):
        return None
    return InputError(
        f"model {printable(path)} needs code of its own, but this package runs no code of a checkpoint: use one whose "
        "classes are part of transformers"
    )


def weight_options(folder: str | Path, allow_bin: bool) -> dict[str, Any]:
    """Options for from_pretrained to read safetensors, or a pickle if that is allowed and there are no safetensors.

    Args:
        folder: the checkpoint's folder, or an id on the hub.
    """
    alone = allow_bin and not any(Path(folder).glob(SAFE))
    return {"use_safetensors": (False if Path(folder).is_dir() else None) if alone else True, "weights_only": True}


def check_weight_files(folder: Path, allow_bin: bool) -> None:
    """Raise InputError unless a folder has all its weights, in a permitted format, and its indices name files in it."""
    pickled = any(folder.glob(PICKLED))
    if not any(any(folder.glob(pattern)) for pattern in (SAFE, _SAFE_INDEX)):
        if not pickled:
            raise InputError(f"model folder {folder} contains no weights (*.safetensors): give a complete checkpoint")
        if not allow_bin:
            raise InputError(
                f"model folder {folder} contains only pickled weights (pytorch_model.bin): save it as safetensors, or "
                "allow them to be read as plain tensors with --allow-bin (allow_bin=True)"
            )
    patterns = (_SAFE_INDEX, *((_PICKLED_INDEX,) if allow_bin else ()))
    named = {file: _named_by(file) for pattern in patterns for file in sorted(folder.glob(pattern))}
    single = folder / _SINGLE[pickled and not weight_options(folder, allow_bin)["use_safetensors"]]
    index = folder / f"{single.name}.index.json"
    if single.exists():  # takes precedence over an index
        read = [single.name]
    elif index in named:
        read = named[index]
        _check_shards(index, read)
    else:
        read = sorted(file.name for file in folder.glob(SAFE))
    for name in read:
        _check_weights(folder / name)


@contextlib.contextmanager
def tensors_only(module: Any, *classes: type) -> Iterator[None]:
    """A context in which torch.load, as called by a module, reads only tensors, plain values and objects of these
    classes, whatever the module asks for."""
    real = module.torch

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def load(self, *args: Any, **options: Any) -> Any:
            return real.load(*args, **{**options, "weights_only": True})

    module.torch = Torch()
    try:
        with real.serialization.safe_globals(list(classes)):
            yield
    finally:
        module.torch = real


def _check_shards(index: Path, names: list[str]) -> None:
    """Raise InputError if files that an index names are missing."""
    if lacking := [name for name in names if not os.path.exists(index.parent / name)]:
        raise InputError(
            f"model folder {index.parent} lacks {len(lacking)} of {len(names)} weight files that {index.name} "
            f"names ({', '.join(map(brief, lacking[:3]))}{', ...' * (len(lacking) > 3)}): download them again"
        )


def _check_weights(file: Path) -> None:
    """Raise InputError for a file without permission to read, or a Git LFS pointer in place of a large file."""
    if not file.is_file():
        return
    if not may_be_read(file):
        raise InputError(f"{file} may not be read (permission denied): change its permissions, or give another model")
    if file.stat().st_size < _POINTER and file.read_bytes().startswith(LFS_POINTER):
        raise InputError(f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull` in its folder")


def _named_by(file: Path) -> list[str]:
    """The files that an index names; InputError if it is not an index, or names files outside of its folder."""
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        names = list(index["weight_map"].values())
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{file} is not an index of weights ({reason}): download or save the model again") from error
    names = list(dict.fromkeys(map(str, names)))
    for name in names:
        if "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise InputError(
                f"{file} names weights outside of its folder ({printable(name)}): download or save the model again"
            )
    return names


def _names_code(config: Any) -> str | None:
    """The key in a config, at any depth, that names modules to import; None if there is none."""
    todo = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            key = next((key for key in _CODE if value.get(key)), None)
            if key is not None:
                return key
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    return None
